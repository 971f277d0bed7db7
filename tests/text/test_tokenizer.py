"""Tokenizers: the ids of the originals, exact round trips, streams, special tokens that users write."""

from __future__ import annotations

import json
import lzma
import os
import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from educe.errors import InputError, LimitError, ModelFileError, UnsupportedModelError
from educe.formats.llama2c import read_vocabulary
from educe.limits import Limits
from educe.model.checkpoint import TokenizerFiles, Vocabulary
from educe.text import pieces, pretokenizers, sentencepiece
from educe.text.tokenizer import Tokenizer

ROUNDS = int(os.environ.get("EDUCE_TEST_TEXTS", "500"))
ENDOFTEXT = "<|endoftext|>"


def unpacked(zoo: Path, name: str) -> bytes:
    return lzma.decompress((zoo / "tokenizers" / f"{name}.xz").read_bytes())


def gpt2_files(zoo: Path) -> dict[str, bytes]:
    merges = unpacked(zoo, "gpt2_merges.txt")
    letters = list(pieces.BYTES)
    pairs = merges.decode().split("\n")[1:-1]
    tokens = [*letters, *(pair.replace(" ", "") for pair in pairs), ENDOFTEXT]
    vocab = {token: index for index, token in enumerate(tokens)}
    return {"vocab.json": json.dumps(vocab).encode(), "merges.txt": merges}


@pytest.fixture(scope="module")
def gpt2(zoo: Path) -> Tokenizer:
    return Tokenizer.from_files(TokenizerFiles(files=gpt2_files(zoo)))


@pytest.fixture(scope="module")
def bert(zoo: Path) -> Tokenizer:
    return Tokenizer.from_files(
        TokenizerFiles(files={"vocab.txt": unpacked(zoo, "bert_base_uncased_vocab.txt")})
    )


@pytest.fixture(scope="module")
def wiki(zoo: Path) -> Tokenizer:
    content = unpacked(zoo, "sentencepiece_en_wiki_10k.model")
    return Tokenizer.from_files(TokenizerFiles(files={"tokenizer.model": content}))


@pytest.fixture(scope="module")
def stories(zoo: Path) -> Tokenizer:
    path = zoo / "stories260K" / "tok512.bin"
    return Tokenizer.from_vocabulary(read_vocabulary(path.read_bytes(), 512, path))


@pytest.fixture(scope="module")
def gguf_gpt2(zoo: Path) -> Tokenizer:
    files = gpt2_files(zoo)
    vocab = json.loads(files["vocab.json"])
    merges = tuple(files["merges.txt"].decode().split("\n")[1:-1])
    types = tuple(3 if token == ENDOFTEXT else 1 for token in vocab)
    return Tokenizer.from_vocabulary(
        Vocabulary(
            "gpt2",
            tuple(vocab),
            types=types,
            merges=merges,
            special={"eos": 50256},
            options={"pre": "llama-bpe"},
        )
    )


def byte_json(tokens: list[str], special: list[AddedToken], **changes: object) -> bytes:
    """A tokenizer.json of bytes, with no merges, and special tokens."""
    letters = [*pieces.BYTES, *tokens]
    library = Library(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(special)
    return json.dumps(json.loads(library.to_str()) | changes).encode()


def from_json(content: bytes, **settings: object) -> Tokenizer:
    files = {"tokenizer.json": content, "tokenizer_config.json": json.dumps(settings).encode()}
    return Tokenizer.from_files(TokenizerFiles(files=files))


def random_text(draw: random.Random) -> str:
    ranges = (
        (0x20, 0x7F),
        (0x20, 0x250),
        (0x370, 0x5FF),
        (0x3040, 0xA000),
        (0x1F300, 0x1FA00),
        (0, 0x10FFFF),
    )
    letters = (chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randint(0, 40)))
    return "".join(letter for letter in letters if not "\ud800" <= letter <= "\udfff")


@pytest.mark.parametrize("name", ["gpt2", "bert_uncased", "sentencepiece_en_10k"])
def test_the_ids_are_those_of_the_originals(zoo: Path, name: str, request: pytest.FixtureRequest) -> None:
    fixtures = {"gpt2": "gpt2", "bert_uncased": "bert", "sentencepiece_en_10k": "wiki"}
    tokenizer = request.getfixturevalue(fixtures[name])
    for case in json.loads((zoo / "tokenizers" / "expected.json").read_text()):
        assert tokenizer.encode(case["text"]) == case[name]


def test_prompts_of_stories_are_cut_as_llama2c_cuts_them(zoo: Path, stories: Tokenizer) -> None:
    for case in json.loads((zoo / "stories260K" / "expected.json").read_text())["cases"]:
        assert stories.encode(case["prompt"]) == case["prompt_ids"]
        assert stories.decode(case["greedy_ids"]).startswith(case["prompt"])


def test_a_story_goes_on_where_its_prompt_ends(stories: Tokenizer) -> None:
    prompt, whole = stories.encode("Once upon"), stories.encode("Once upon a time")
    decoder = stories.stream(after=prompt)
    added = "".join([*map(decoder.push, whole[len(prompt) :]), decoder.finish()])
    assert stories.decode(prompt) + added == "Once upon a time"


@pytest.mark.parametrize("name", ["gpt2", "gguf_gpt2", "stories"])
def test_random_texts_come_back_whole_and_streamed(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    draw = random.Random(7)
    for _ in range(ROUNDS):
        text = random_text(draw).replace("\u2581", "")
        ids = tokenizer.encode(text)
        decoder = tokenizer.stream()
        pushed = [decoder.push(index) for index in ids]
        assert "".join(pushed) + decoder.finish() == tokenizer.decode(ids) == text
        assert all("\ufffd" not in part for part in pushed if "\ufffd" not in text)


def test_random_ids_stream_to_just_what_they_decode_to(gpt2: Tokenizer, stories: Tokenizer) -> None:
    draw = random.Random(8)
    for tokenizer in (gpt2, stories):
        for _ in range(200):
            ids = [draw.randrange(min(400, tokenizer.vocabulary_size)) for _ in range(20)]
            decoder = tokenizer.stream()
            streamed = "".join([*map(decoder.push, ids), decoder.finish()])
            data = b"".join(tokenizer.token_bytes(i) for i in ids if i not in tokenizer.special)
            data = data.removeprefix(b" ") if tokenizer.drops_space else data
            assert streamed == tokenizer.decode(ids) == data.decode("utf-8", "replace")


def test_sentencepiece_itself_cuts_random_texts_alike(zoo: Path, wiki: Tokenizer) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    original = sentencepiece.SentencePieceProcessor(
        model_proto=unpacked(zoo, "sentencepiece_en_wiki_10k.model")
    )
    draw = random.Random(9)
    for _ in range(ROUNDS):
        text = "".join(draw.choices("aaabeth   sionrTé日\u00a0\u3000.,0ﬁ½\t\u200b", k=draw.randint(0, 40)))
        assert wiki.encode(text) == original.encode(text), text


def test_a_character_is_never_halved(gpt2: Tokenizer) -> None:
    ids = gpt2.encode("😀!")
    decoder = gpt2.stream()
    pushed = [decoder.push(index) for index in ids]
    assert pushed == [*[""] * (len(ids) - 2), "😀", "!"]
    assert len(ids) > 2
    decoder = gpt2.stream()
    assert decoder.push(ids[0]) == ""
    assert decoder.finish() == "\ufffd"


def test_special_tokens_in_a_users_text_are_text(gpt2: Tokenizer) -> None:
    text = f"a{ENDOFTEXT}b"
    assert 50256 not in gpt2.encode(text)
    assert gpt2.decode(gpt2.encode(text)) == text
    assert gpt2.encode(text, parse_special=True) == [64, 50256, 65]
    assert gpt2.decode([64, 50256, 65]) == "ab"
    assert gpt2.decode([64, 50256, 65], skip_special=False) == text


def test_what_is_guarded_is_text_in_a_prompt_too() -> None:
    special = [AddedToken(name) for name in ("<|a|>", "|>x", "<s>")]
    tokenizer = from_json(byte_json([], special))
    text = "<|a|>x <s>\ufdd0\ufdd1 |>x"
    plain = tokenizer.encode(text)
    assert not set(plain) & tokenizer.special
    assert tokenizer.decode(plain) == text
    prompt = tokenizer.encode(f"<s>{tokenizer.guard(text)}<s>", parse_special=True)
    mark = tokenizer.encode("<s>", parse_special=True)
    assert prompt == mark + plain + mark


def test_special_tokens_of_the_normalized_kind_are_found_too() -> None:
    tokenizer = from_json(byte_json([], [AddedToken("<s>", normalized=True)]))
    assert len(tokenizer.encode("<s>", parse_special=True)) == 1
    assert len(tokenizer.encode("<s>")) == 3


def test_settings_name_the_special_ids() -> None:
    special = [AddedToken(name) for name in ("<b>", "<e>", "<|im_end|>", "<p>")]
    tokenizer = from_json(
        byte_json([], special), bos_token="<b>", eos_token={"content": "<e>"}, pad_token="<p>", unk_token=None
    )
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (256, {257, 258}, 259)
    assert tokenizer.vocabulary_size == 260
    assert tokenizer.token_bytes(257) == b"<e>"


def test_a_json_of_its_own_template_begins_and_ends_texts() -> None:
    library = Library.from_str(byte_json([], [AddedToken("<s>")]).decode())
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer = from_json(library.to_str().encode())
    assert tokenizer.encode("a") == [256, *tokenizer.encode("a", add_special=False)]


def test_an_unknown_expression_is_cut_in_a_worker(zoo: Path) -> None:
    cut = {"type": "Split", "pattern": {"Regex": "[ab]+|."}, "behavior": "Isolated", "invert": False}
    plain = json.loads(byte_json(["ab"], [AddedToken("<s>")]))
    both = {"type": "Sequence", "pretokenizers": [cut, plain["pre_tokenizer"]]}
    tokenizer = from_json(byte_json(["ab"], [AddedToken("<s>")], pre_tokenizer=both))
    for text in ("ab c", "é<s>", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<s>", parse_special=True) == [257]


def test_sentencepiece_in_a_json_drops_the_space_that_it_added() -> None:
    vocab = {"<unk>": 0, "\u2581": 1, "a": 2, "\u2581a": 3}
    library = Library(models.BPE(vocab, [("\u2581", "a")], unk_token="<unk>"))
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer = from_json(library.to_str().encode())
    assert tokenizer.encode("a a") == [3, 3]
    assert tokenizer.decode([3, 3]) == "a a"
    assert tokenizer.token_bytes(3) == b" a"


def test_a_vocabulary_of_llama_3_begins_texts_and_takes_whole_tokens() -> None:
    tokens = ("a", "b", "c", "ab", "abc", "<|begin_of_text|>", "<|eot_id|>")
    types = (1, 1, 1, 1, 1, 3, 3)
    special, merges = {"bos": 5}, ("a b",)
    for pre, ids in (("llama-bpe", [5, 4]), ("qwen2", [3, 2])):
        vocabulary = Vocabulary("gpt2", tokens, (), types, merges, special, {"pre": pre})
        tokenizer = Tokenizer.from_vocabulary(vocabulary)
        assert tokenizer.encode("abc") == ids
        assert tokenizer.eos == {6}


def test_an_unknown_letter_is_the_token_of_that_kind() -> None:
    vocabulary = Vocabulary("llama", ("<x>", "a"), (0.0, 0.0), (2, 1), options={"add_space_prefix": False})
    assert Tokenizer.from_vocabulary(vocabulary).encode("aé") == [1, 0]


def test_a_users_own_tokens_are_found_in_any_text() -> None:
    tokens = ("<unk>", "a", "\u2581", "\u2581\u2581", "<tool>")
    vocabulary = Vocabulary("llama", tokens, (0.0,) * 5, (2, 1, 1, 4, 4), options={"add_space_prefix": False})
    tokenizer = Tokenizer.from_vocabulary(vocabulary)
    assert tokenizer.encode("a  a<tool>a") == [1, 3, 1, 4, 1]
    assert tokenizer.decode([1, 3, 1, 4, 1]) == "a  a<tool>a"


def test_unigram_takes_the_likeliest_cut() -> None:
    tokens = ("<pad>", "</s>", "<unk>", "\u2581", "a", "b", "ab", "\u2581ab")
    scores = (0.0, 0.0, 0.0, -2.0, -3.0, -3.0, -4.0, -7.5)
    special = {"eos": 1, "unk": 2, "pad": 0}
    tokenizer = Tokenizer.from_vocabulary(
        Vocabulary("t5", tokens, scores, (3, 3, 2, 1, 1, 1, 1, 1), special=special)
    )
    assert tokenizer.encode("ab") == [3, 6, 1]
    assert tokenizer.decode([3, 6, 1]) == "ab"


def test_a_special_token_in_a_users_text_is_text_for_models_of_whole_tokens_too() -> None:
    tokens = ("</s>", "<unk>", "\u2581", "a", "<", "/", "s", ">", "s>")
    scores = (0.0, 0.0, *(-3.0 for _ in tokens[2:]))
    special = {"eos": 0, "unk": 1}
    types = (3, 2, *(1 for _ in tokens[2:]))
    unigram = Vocabulary("t5", tokens, scores, types, special=special, options={"add_eos_token": False})
    tokenizer = Tokenizer.from_vocabulary(unigram)
    assert tokenizer.encode("a</s>a") == [2, 3, 4, 5, 6, 7, 3]
    assert tokenizer.encode("a</s>a", parse_special=True)[2] == 0
    assert tokenizer.encode("as>") == [2, 3, 8]
    words = Tokenizer.from_vocabulary(Vocabulary("words", ("</s>", "<unk>", "a"), special=special))
    assert 0 not in words.encode("a </s>")


def test_words_are_looked_up() -> None:
    tokenizer = Tokenizer.from_vocabulary(Vocabulary("words", ("a", "b", "<unk>"), special={"unk": 2}))
    assert tokenizer.encode("b a c") == [1, 0, 2]
    assert tokenizer.decode([1, 0]) == "b a"


@pytest.mark.parametrize("index", [-1, 50257, 2**32, 2**70])
def test_an_id_that_no_token_has_spells_nothing(gpt2: Tokenizer, index: int) -> None:
    assert gpt2.decode([64, index, 65]) == "ab"
    assert gpt2.token_bytes(index) == b""


def test_a_vocabulary_may_have_gaps() -> None:
    core = Library(models.WordLevel({"a": 0, "b": 2, "c": 5, "<unk>": 7}, "<unk>"))
    tokenizer = Tokenizer.from_files(TokenizerFiles({"tokenizer.json": core.to_str().encode()}))
    assert tokenizer.ids.tolist() == [0, 2, 5, 7]
    assert tokenizer.vocabulary_size == 8
    assert tokenizer.decode([0, 1, 2]) == "a b"


def test_half_a_character_is_refused(gpt2: Tokenizer) -> None:
    with pytest.raises(InputError, match="surrogate"):
        gpt2.encode("a\ud800")


def test_a_text_may_be_too_long(zoo: Path) -> None:
    tokenizer = Tokenizer.from_files(TokenizerFiles(files=gpt2_files(zoo)), Limits(text_bytes=3))
    assert tokenizer.encode("abc")
    with pytest.raises(LimitError):
        tokenizer.encode("é" * 2)


@pytest.mark.parametrize("letter", ["a", ".", " ", "日", "\n"])
@pytest.mark.parametrize("name", ["gpt2", "gguf_gpt2", "stories", "wiki", "bert"])
def test_a_huge_text_of_one_letter_takes_no_long(
    name: str, letter: str, request: pytest.FixtureRequest
) -> None:
    assert request.getfixturevalue(name).encode(letter * 100_000) is not None


def test_special_tokens_may_be_kept_and_are_found_by_name(gpt2: Tokenizer) -> None:
    assert gpt2.added_id(ENDOFTEXT) == 50256
    assert gpt2.added_id("a") is None
    decoder = gpt2.stream(keep=[50256])
    assert "".join(map(decoder.push, [64, 50256, 65])) == f"a{ENDOFTEXT}b"


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("qwen2", "cafe|\u0301| |1|2|3|,| don|'t"),
        ("qwen35", "cafe\u0301| |1|2|3|,| don|'t"),
        ("deepseek-llm", "Ab|\n|\n| É|a|=+|   |日本| |123|\U0001d400|  "),
        ("deepseek-coder", "Ab|\n|\n| Éa|=+  | |日本| |1|2|3|!?|  "),
        ("falcon", "Ab| Éa|==+| |123|4|!?|  "),
        ("bloom", "Ab| Éa12|,| b|(|c|  "),
        ("viking", "Ab| Éa|1|2|,| b"),
        ("hunyuan-dense", "Ab|123|4|日本| c"),
    ],
)
def test_the_pre_tokenizers_of_gguf_cut(name: str, cut: str) -> None:
    pieces_found = pretokenizers.by_name(name).pre_tokenize_str(cut.replace("|", ""))
    spelled = [pieces.byte_level(piece).decode() for piece, _ in pieces_found]
    assert spelled == cut.split("|")


@pytest.mark.parametrize("name", ["deepseek-llm", "deepseek-coder", "falcon", "bloom", "viking", "qwen35"])
def test_pre_tokenizers_take_linear_time(name: str) -> None:
    cut = pretokenizers.by_name(name)
    for letter in ("a", " ", "!", "日"):
        assert cut.pre_tokenize_str(letter * 50_000 + "x")


def numbered_files(zoo: Path, name: str, *more: str) -> dict[str, bytes]:
    """Give the files of a translator: pieces of SentencePiece, most of them numbered in another order."""
    content = unpacked(zoo, "sentencepiece_en_wiki_10k.model")
    known = sentencepiece.parse(content).tokens
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    tokens = [*first, *more, *sorted(set(known) - {*first, "\u2581the"})]
    return {name: content, "vocab.json": json.dumps({token: i for i, token in enumerate(tokens)}).encode()}


def test_m2m100_numbers_its_pieces_and_languages_in_other_files(zoo: Path, wiki: Tokenizer) -> None:
    files = numbered_files(zoo, "sentencepiece.bpe.model")
    ids = json.loads(files["vocab.json"])
    files["special_tokens_map.json"] = json.dumps(
        {"additional_special_tokens": ["__en__", {"content": "__fr__"}]}
    ).encode()
    tokenizer = Tokenizer.from_files(TokenizerFiles(files=files))
    found = tokenizer.encode("of a thing in the")
    assert tokenizer.eos == {2}
    assert tokenizer.pad == 1
    assert found[-2:] == [3, 2]
    spelled = [wiki.token_bytes(own) for own in wiki.encode("of a thing in the", add_special=False)[:-1]]
    assert [tokenizer.token_bytes(index) for index in found[:-2]] == spelled
    assert tokenizer.decode(found[:-2]) == "of a thing in"
    assert tokenizer.added_id("__fr__") == len(ids) + 1
    assert tokenizer.vocabulary_size == len(ids) + 2
    assert tokenizer.encode("__en__ a", parse_special=True)[0] == len(ids)
    assert len(ids) not in tokenizer.encode("__en__ a")


def fairseq_files(zoo: Path, kind: str, **settings: object) -> dict[str, bytes]:
    content = unpacked(zoo, "sentencepiece_en_wiki_10k.model")
    fields = {"tokenizer_class": kind, "bos_token": "<s>", "mask_token": "<mask>", **settings}
    return {"sentencepiece.bpe.model": content, "tokenizer_config.json": json.dumps(fields).encode()}


def test_nllb_numbers_pieces_as_fairseq_does(zoo: Path, wiki: Tokenizer) -> None:
    languages = ["eng_Latn", "fra_Latn"]
    files = fairseq_files(zoo, "NllbTokenizer", additional_special_tokens=languages)
    tokenizer = Tokenizer.from_files(TokenizerFiles(files=files))
    pieces_only = wiki.encode("of a thing in the", add_special=False)
    assert tokenizer.encode("of a thing in the") == [*(index + 1 for index in pieces_only), 2]
    assert tokenizer.decode(tokenizer.encode("of a thing in the")) == "of a thing in the"
    assert (tokenizer.bos, tokenizer.pad, tokenizer.eos) == (0, 1, {2})
    size = wiki.vocabulary_size + 1
    named = [tokenizer.added_id(token) for token in (*languages, "<mask>")]
    assert named == [size, size + 1, size + 2]
    assert tokenizer.vocabulary_size == size + 3


def test_an_encoders_texts_begin_as_fairseq_has_them(zoo: Path, wiki: Tokenizer) -> None:
    tokenizer = Tokenizer.from_files(TokenizerFiles(files=fairseq_files(zoo, "XLMRobertaTokenizer")))
    pieces_only = wiki.encode("of a thing", add_special=False)
    assert tokenizer.encode("of a thing") == [0, *(index + 1 for index in pieces_only), 2]


@pytest.mark.parametrize("kind", ["", "CamembertTokenizer", "NllbTokenizer", "MBart50TokenizerFast"])
def test_numbers_that_nothing_tells_are_refused(zoo: Path, kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"save_pretrained"):
        Tokenizer.from_files(TokenizerFiles(files=fairseq_files(zoo, kind)))


def test_marians_languages_are_special_and_its_targets_pieces_are_spelled(zoo: Path) -> None:
    files = numbered_files(zoo, "source.spm", ">>fra<<", "\u2581été")
    tokenizer = Tokenizer.from_files(TokenizerFiles(files=files))
    assert tokenizer.added_id(">>fra<<") == 4
    assert tokenizer.encode(">>fra<< a", parse_special=True)[0] == 4
    assert 4 not in tokenizer.encode(">>fra<< a")
    assert tokenizer.decode([4, 5, 2]) == "été"


@pytest.mark.parametrize(
    "ids", [{"a": 0, "b": 2}, {"a": 0, "b": 0}, {"<unk>": 0}, {"</s>": 0}, {"<unk>": 0, "</s>": "1"}], ids=str
)
def test_a_numbering_that_is_none_is_refused(zoo: Path, ids: dict[str, object]) -> None:
    files = numbered_files(zoo, "source.spm") | {"vocab.json": json.dumps(ids).encode()}
    with pytest.raises(ModelFileError):
        Tokenizer.from_files(TokenizerFiles(files=files))
