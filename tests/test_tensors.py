"""Raw tensors: every file kind, hostile files, types that must fit, and writing."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import educe
from educe.errors import EduceError, InputError, LimitError, OptionError
from educe.limits import DEFAULT_LIMITS
from educe.media.tensors import read_tensors, write_tensors
from educe.model import CardOrigin, Model, OptionalType, SequenceType, Signature, TensorType
from educe.model.card import Card
from educe.tasks import task_for

RANDOM = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def npy(array, **settings) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **settings)
    return file.getvalue()


def npz(save=np.savez, **arrays) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def zipped(members: list[tuple[str, bytes]], method=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def read(content: bytes, limits=DEFAULT_LIMITS):
    return read_tensors(content, limits)


@pytest.mark.parametrize(
    "array",
    [
        RANDOM,
        np.asfortranarray(RANDOM),
        RANDOM.astype(">f4"),
        np.arange(6, dtype=np.int64).reshape(1, 2, 3),
        np.array(True),
        np.zeros((0, 5), np.uint8),
        np.array([1 + 2j], np.complex64),
        np.array([1.5], np.float16),
    ],
)
def test_npy(array, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(npy(array))
    found = read_tensors(path, DEFAULT_LIMITS)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype.newbyteorder("=")
    assert found.dtype.isnative
    assert found.flags.writeable


def test_text_becomes_objects():
    for array in (np.array(["grün", "x"]), np.array(["grün".encode(), b"x"])):
        found = read(npy(array))
        assert found.dtype == object
        assert found.tolist() == ["grün", "x"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save):
    found = read(npz(save, x=RANDOM, y=np.arange(3)))
    assert list(found) == ["x", "y"]
    np.testing.assert_array_equal(found["x"], RANDOM)
    assert read(npz()) == {}


def header(text: str, version=1) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode()


def described(shape="(3,)", descr="'<f4'", order="False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x93NUMPY", "is no .npy file"),
        (b"\x93NUMPY\x09\x00" + bytes(20), "is no .npy file"),
        (header("{"), "is no .npy file"),
        (header("(" * 9000), "is no .npy file"),
        (header("__import__('os').system('x')"), "is no .npy file"),
        (header("{}"), "is no .npy file"),
        (header(described("(-1,)")) + bytes(12), r"its shape is \(-1,\)"),
        (header(described("(3.0,)")) + bytes(12), "is no .npy file"),
        (header(described()) + bytes(11), "expected 12 bytes as its header declares, found 11"),
        (header(described()) + bytes(13), "expected 12 bytes as its header declares, found 13"),
        (header(described("(1000000000,)")), "expected 4,000,000,000 bytes"),
        (header(described(descr="'|O'")), r"elements of type '\|O'"),
        (header(described(descr="'<M8[s]'")), "elements of type '<M8"),
        (header(described(descr="[('a', '<f4')]")), "not numbers or text"),
        (header(described(descr="'|V4'")), "not numbers or text"),
        (header(described("(1,)", "'<U1'")) + b"\xff\xff\xff\xff", "not Unicode"),
        (header(described("(1,)", "'|S1'")) + b"\xff", "not UTF-8"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31), "its header has 2,147,483,648 bytes"),
    ],
)
def test_hostile_npy(content, problem):
    with pytest.raises(InputError, match=problem):
        read(content)
    with pytest.raises(InputError):
        read(zipped([("x.npy", content)]))


def test_pickles_are_never_loaded():
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a pickle was loaded",)

    with pytest.raises(InputError, match=r"elements of type '\|O'"):
        read(npy(np.array([Trap()], object), allow_pickle=True))


def test_declared_sizes_are_checked_before_anything_is_unpacked():
    limits = DEFAULT_LIMITS.raised(tensor_bytes=10_000)
    with pytest.raises(LimitError, match="tensor_bytes"):
        read(header(described(f"({10**18},)")))
    with pytest.raises(LimitError, match="tensor_bytes"):
        read(npz(np.savez_compressed, x=np.zeros(10_000, np.float32)), limits)
    with pytest.raises(LimitError, match="tensor_bytes"):
        read(npz(np.savez_compressed, x=np.zeros(2000, np.float32), y=np.zeros(2000, np.float32)), limits)
    with pytest.raises(LimitError, match="tensor_bytes"):
        read(npy(np.zeros(10_000)), limits)


def test_a_member_that_lies_about_its_size():
    honest = npz(np.savez_compressed, x=np.zeros(100_000, np.float32))
    position = honest.rindex(b"PK\x01\x02")
    for lie in (200, 2**31):
        lying = bytearray(honest)
        struct.pack_into("<I", lying, position + 24, lie)
        with pytest.raises(InputError):
            read(bytes(lying))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (zipped([("x.txt", b"hello")]), "'x.txt', which is no array"),
        (zipped([("x.npy", npy(RANDOM))], zipfile.ZIP_BZIP2), "which is no array"),
        (zipped([("x.npy", b"hello")]), "array 'x.npy': is no .npy file"),
        (npz(x=RANDOM)[:-5], "is cut off"),
        (npz(x=RANDOM)[:200], "is cut off"),
        (b"PK\x03\x04", "is cut off"),
        (npz(x=RANDOM) + b"comment", "is cut off"),
    ],
)
def test_hostile_npz(content, problem):
    with pytest.raises(InputError, match=problem):
        read(content)


def test_two_members_of_one_name():
    with pytest.warns(UserWarning, match="Duplicate"):
        content = zipped([("x.npy", npy(RANDOM)), ("x.npy", npy(RANDOM))])
    with pytest.raises(InputError, match="two arrays of one name"):
        read(content)


def test_a_huge_list_of_members_is_not_read():
    content = npz(x=RANDOM)
    huge = content[:-10] + struct.pack("<II", 2**30, 0) + content[-2:]
    with pytest.raises(InputError, match="too many arrays"):
        read(huge)
    locator = b"PK\x06\x07" + bytes(16)
    with pytest.raises(InputError, match="ZIP64"):
        read(content[:-22] + locator + content[-22:])


def test_damaged_npz_gives_typed_errors():
    content = npz(np.savez_compressed, x=RANDOM, y=np.arange(100))
    generator = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(content)
        for position in generator.integers(0, len(content), 3):
            damaged[position] = generator.integers(0, 256)
        try:
            read(bytes(damaged))
        except EduceError:
            continue


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00", b"PK\x03\x04"]))
def test_any_bytes_give_tensors_or_a_typed_error(content, prefix):
    with contextlib.suppress(EduceError):
        read(prefix + content)


@pytest.mark.parametrize(
    "array",
    [
        RANDOM,
        np.array(3.5, np.float64),
        np.arange(4, dtype=np.int64),
        np.zeros((0, 2), np.float32),
        np.array([[True, False]]),
        np.array([1.5, -2], ml_dtypes.bfloat16),
        np.array([1.5, -2], ml_dtypes.float8_e4m3fn),
        np.array([1, -2, 3], ml_dtypes.int4),
    ],
)
def test_onnx_tensors(array):
    found = read(numpy_helper.from_array(array, "x").SerializeToString())
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype
    typed = helper.make_tensor("x", helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.ravel())
    np.testing.assert_array_equal(read(typed.SerializeToString()), array)


def test_onnx_text_sequences_and_optionals():
    words = np.array([["a", "ü"]], object)
    assert read(numpy_helper.from_array(words).SerializeToString()).tolist() == [["a", "ü"]]
    for name in ("", "name"):
        pair = read(numpy_helper.from_list([RANDOM, RANDOM[:1]], name).SerializeToString())
        assert [array.shape for array in pair] == [(3, 4), (1, 4)]
        one = read(numpy_helper.from_optional(RANDOM, name).SerializeToString())
        np.testing.assert_array_equal(one[0], RANDOM)
    nested = read(numpy_helper.from_list([[RANDOM], [RANDOM, RANDOM]]).SerializeToString())
    assert [len(inner) for inner in nested] == [1, 2]
    assert read(numpy_helper.from_list([], dtype=1).SerializeToString()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a,b\n1,2\n",
        b"hello world",
        b"\xff" * 50,
        TensorProto(data_type=1, dims=[2**40]).SerializeToString(),
        TensorProto(data_type=1, dims=[-1], raw_data=bytes(4)).SerializeToString(),
        TensorProto(data_type=99, dims=[1], raw_data=bytes(4)).SerializeToString(),
        TensorProto(data_type=1, dims=[3], raw_data=bytes(5)).SerializeToString(),
        TensorProto(data_type=1, dims=[3], float_data=[1, 2]).SerializeToString(),
        TensorProto(data_type=8, dims=[1], string_data=[b"\xff"]).SerializeToString(),
        TensorProto(
            data_type=1,
            dims=[1],
            data_location=1,
            external_data=[onnx.StringStringEntryProto(key="location", value="/etc/passwd")],
        ).SerializeToString(),
    ],
)
def test_hostile_protobuf(content, tmp_path):
    path = tmp_path / "x.pb"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pb: is no \.npy, \.npz or ONNX \.pb file"):
        read_tensors(path, DEFAULT_LIMITS)


def test_written_tensors_are_read_back(tmp_path):
    path = tmp_path / "out.npz"
    arrays = {
        "file": RANDOM,
        "a/b:0": np.arange(3),
        "half": np.array([1.5], ml_dtypes.bfloat16),
        "nibble": np.array([-8, 7], ml_dtypes.int4),
        "words": np.array(["a", "öö"], object),
    }
    write_tensors(path, arrays)
    found = read_tensors(path, DEFAULT_LIMITS)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array.astype(found[name].dtype))
    assert found["half"].dtype == found["nibble"].dtype == np.float32
    with np.load(path) as numpys:
        np.testing.assert_array_equal(numpys["file"], RANDOM)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.npz"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "out.npz"
    write_tensors(path, {"x": RANDOM})
    before = path.read_bytes()

    class Broken:
        dtype = RANDOM.dtype

        def __getattr__(self, name):
            raise OSError(28, "No space left on device")

    with pytest.raises(OptionError, match="No space left"):
        write_tensors(path, {"x": RANDOM, "y": Broken()})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.npz"]
    with pytest.raises(OptionError, match="cannot be written"):
        write_tensors(tmp_path / "none" / "out.npz", {"x": RANDOM})


def tensor_task(inputs, **card):
    signature = Signature(inputs, {"y": TensorType("f32", None)})
    return task_for(
        Model(None, signature, "m", None, "0" * 64, 0, {}, Card(task="tensor", **card), CardOrigin("none"))
    )


X = TensorType("f32", ("N", 4))
PAIR = {"a": X, "b": TensorType("i64", (2,))}


def feeds_of(task, source):
    return task.preprocess(list(task.open(source)))


def test_one_array_goes_to_the_only_free_input(tmp_path):
    task = tensor_task({"x": X, "rate": TensorType("i64", ())}, constants={"rate": 16000})
    (tmp_path / "x.npy").write_bytes(npy(RANDOM))
    (tmp_path / "x.npz").write_bytes(zipped([("arr_0.npy", npy(RANDOM))]))
    sources = [RANDOM, {"x": RANDOM}, tmp_path / "x.npy", str(tmp_path / "x.npz"), npy(RANDOM), npz(x=RANDOM)]
    for source in sources:
        feeds = feeds_of(task, source)
        assert list(feeds) == ["x"]
        np.testing.assert_array_equal(feeds["x"], RANDOM)


def test_several_inputs_go_by_name():
    task = tensor_task(PAIR)
    feeds = feeds_of(task, npz(b=np.arange(2), a=RANDOM))
    assert feeds["b"].tolist() == [0, 1]
    with pytest.raises(InputError, match=r"has 2 inputs.*numpy\.savez\(path, a=…, b=…\)"):
        feeds_of(task, RANDOM)
    with pytest.raises(InputError, match="the input 'b' is missing"):
        feeds_of(task, {"a": RANDOM})
    with pytest.raises(InputError, match=r"no input 'bb'.*did you mean 'b'"):
        feeds_of(task, {"a": RANDOM, "b": np.arange(2), "bb": RANDOM})


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            RANDOM.astype(np.float64),
            r"input 'x': expected f32\[N,4\], found f64\[3, 4\].*astype\('float32'\)",
        ),
        (RANDOM.astype(np.int32), r"found i32\[3, 4\]"),
        (RANDOM[0], r"expected 2 dimensions .*reshape"),
        (RANDOM[:, :2], "expected 4 in dimension 1"),
        ([RANDOM], r"expected f32\[N,4\], found list"),
        ({"x": "text"}, "found str"),
        (7, "expected arrays, found int"),
    ],
)
def test_nothing_is_cast_or_guessed(source, problem):
    with pytest.raises(InputError, match=problem):
        feeds_of(tensor_task({"x": X}), source)


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(npy(RANDOM.astype(np.float64)))
    with pytest.raises(InputError, match=r"x\.npy: input 'x'"):
        feeds_of(tensor_task({"x": X}), path)
    with pytest.raises(InputError, match="not a regular file"):
        feeds_of(tensor_task({"x": X}), tmp_path)
    task = tensor_task({"x": X})
    items = [*task.open(RANDOM), *task.open(RANDOM)]
    with pytest.raises(OptionError, match="one set at a time"):
        task.preprocess(items)


def test_sequences_optionals_and_text():
    sequence = tensor_task({"x": SequenceType(X)})
    assert len(feeds_of(sequence, [RANDOM, RANDOM])["x"]) == 2
    with pytest.raises(InputError, match=r"input 'x\[1\]'"):
        feeds_of(sequence, [RANDOM, RANDOM[0]])
    optional = tensor_task({"x": OptionalType(X)})
    assert feeds_of(optional, [])["x"] is None
    np.testing.assert_array_equal(feeds_of(optional, [RANDOM])["x"], RANDOM)
    np.testing.assert_array_equal(feeds_of(optional, RANDOM)["x"], RANDOM)
    text = tensor_task({"x": TensorType("str", ("N",))})
    assert feeds_of(text, np.array(["a", "b"]))["x"].dtype == object


def test_outputs_come_back_as_they_are():
    task = tensor_task({"x": X})
    items = list(task.open(RANDOM))
    (finding,) = task.postprocess({"y": RANDOM, "z": [RANDOM, {"k": np.float32(1)}], "none": None}, items)
    assert list(finding.outputs) == ["y", "z[0]", "z[1]['k']"]
    assert finding.outputs["y"] is RANDOM


def test_a_model_without_a_card_runs_on_tensors(tmp_path):
    nodes = [helper.make_node("Add", ["a", "b"], ["c"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "abc"]
    graph = helper.make_graph(nodes, "sum", values[:2], values[2:])
    content = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    (tmp_path / "in.npz").write_bytes(npz(a=RANDOM, b=RANDOM))
    answer = educe.predictor(content, task="tensor")(tmp_path / "in.npz")
    np.testing.assert_allclose(answer.outputs["c"], RANDOM + RANDOM)
    assert not answer.top()
