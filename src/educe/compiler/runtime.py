"""The compiled runtime: the pool of threads, and the loop that runs a table of launches.

A table is an array of 64-bit words; each launch is::

    function, words, num_pointers, num_sizes, extent, chunk,
    (base, offset) for each pointer, each size

The pool is an array of 64-bit words, by cache lines: `BUSY` is taken by the one run that uses the workers;
`RUNS` holds three words: how many runs there are, how many leave no core to a worker, and what
`Runtime.crowd` has added up;
`STATE` holds how many workers are inside the present job, in its low bits, and the number of the last worker
that may enter, above them, 0 if none may; then the job itself; `NEXT` holds for each thread's share of the
units the first that nobody has taken. A thread takes its own share first, so that it finds in its cache what
it wrote before, and then from those of others. Workers watch `STATE` for a short time and then sleep until
they are woken. A run that finds the pool taken does its work alone. So do all of as many runs as there are
cores: they would wait for workers that wait for a core.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

from educe.compiler import calling, jit
from educe.compiler.calling import ARRAY_DATA
from educe.compiler.emit import BOOL, I8, I32, I64, PTR, Function, Val
from educe.compiler.library import origin, stored
from educe.compiler.loader import Loader, keep
from educe.compiler.target import Target, host_target
from educe.machine import ForkedLock, renew_when_forked, usable_cores
from educe.store import Key

MAX_POINTERS = 64
HEADER_WORDS = 6

_LINE = 8
_BUSY, _STATE, _JOB, _RUNS, _SLEEP, _MUTEX, _CONDITION, _NEXT = (
    _LINE * index for index in (0, 2, 4, 6, 8, 10, 14, 20)
)
_MAX_SHARES = 512
_POOL_WORDS = _NEXT + _MAX_SHARES * _LINE
_INSIDE_BITS = 16
_SPINS = 4000
_PATIENCE = 100
_JOB_WORDS = 7


def _field(fn: Function, pool: Val, word: int) -> Val:
    return fn.at(I64, pool, word)


def _atomic_add(fn: Function, address: Val, amount: Val | int) -> Val:
    amount = fn.as_val(amount, I64, 0)
    return fn.emit(I64, 0, f"atomicrmw add ptr {address.ref}, i64 {amount.ref} seq_cst")


def _atomic_load(fn: Function, address: Val) -> Val:
    return fn.emit(I64, 0, f"load atomic i64, ptr {address.ref} seq_cst, align 8")


def _atomic_store(fn: Function, value: Val | int, address: Val) -> None:
    value = fn.as_val(value, I64, 0)
    fn.line(f"store atomic i64 {value.ref}, ptr {address.ref} seq_cst, align 8")


def _exchange(fn: Function, address: Val, old: Val | int, new: Val | int) -> Val:
    """Store `new` if `address` holds `old`; return whether it did, as i1."""
    old, new = fn.as_val(old, I64, 0), fn.as_val(new, I64, 0)
    ref = f"%{fn.fresh('p')}"
    fn.line(f"{ref} = cmpxchg ptr {address.ref}, i64 {old.ref}, i64 {new.ref} seq_cst seq_cst")
    return fn.emit(BOOL, 0, f"extractvalue {{ i64, i1 }} {ref}, 1")


def _pause(fn: Function, target: Target) -> None:
    if target.is_arm:
        fn.call("llvm.aarch64.hint", None, 0, fn.const(I32, 1))
    else:
        fn.call("llvm.x86.sse2.pause", None, 0)


def _work(fn: Function, pool: Val, who: Val) -> None:
    """Take chunks of the present job until none is left.

    ::

        for other in 0..threads:
            share = (who + other) % threads
            while (unit = NEXT[share]; NEXT[share] += chunk; unit < end of the share)
                function(P, S, unit, min(unit + chunk, end), scratch + who * stride)
    """
    job = _field(fn, pool, _JOB)
    function, pointers, sizes, scratch = (fn.load(PTR, job, index) for index in range(4))
    extent, chunk, stride = (fn.load(I64, job, index) for index in range(4, _JOB_WORDS))
    threads, share_units = fn.load(I64, job, _JOB_WORDS), fn.load(I64, job, _JOB_WORDS + 1)
    own = fn.at(I8, scratch, who * stride)
    with fn.loop(0, threads) as other:
        share = (who + other) % threads
        last = fn.minimum((share + 1) * share_units, extent)
        next_at = fn.at(I64, _field(fn, pool, _NEXT), share * _LINE)
        with fn.repeat_while() as go_on:
            unit = _atomic_add(fn, next_at, chunk)
            more = unit < last
            with fn.when(more):
                _call(fn, function, pointers, sizes, unit, fn.minimum(unit + chunk, last), own)
            go_on(more)


def _call(fn: Function, function: Val, *arguments: Val) -> None:
    given = ", ".join(f"{each.type} {each.ref}" for each in arguments)
    fn.line(f"call void {function.ref}({given})")


def _worker(target: Target) -> Function:
    """Write ``worker(ptr argument)``: argument holds the pool's address and the worker's number."""
    fn = Function("educe_worker", [PTR], PTR)
    argument = fn.arguments[0]
    pool, who = fn.load(PTR, argument, 0), fn.load(I64, argument, 1)
    state_at = _field(fn, pool, _STATE)
    spins = fn.var(fn.const(I64, 0))
    with fn.repeat_while() as forever:
        state = _atomic_load(fn, state_at)
        with fn.either(_may_enter(state, who)) as otherwise:
            entered = _exchange(fn, state_at, state, state + 1)
            with fn.when(entered):
                _work(fn, pool, who)
                _atomic_add(fn, state_at, -1)
            spins.set(0)
            otherwise()
            spins.set(spins.get() + 1)
            _pause(fn, target)
            with fn.when(spins.get() > _SPINS):
                _sleep(fn, pool, state_at, who)
                spins.set(0)
        forever(fn.const(I64, 0) == 0)
    fn.ret(fn.const(PTR, 0))
    return fn


def _may_enter(state: Val, who: Val) -> Val:
    """Return whether a job is open for worker `who`: there is scratch memory for no other."""
    return who <= (state >> _INSIDE_BITS)


def _sleep(fn: Function, pool: Val, state_at: Val, who: Val) -> None:
    """Sleep until a job is open for worker `who`."""
    mutex, condition = _field(fn, pool, _MUTEX), _field(fn, pool, _CONDITION)
    fn.call("pthread_mutex_lock", I32, 0, mutex)
    _atomic_add(fn, _field(fn, pool, _SLEEP), 1)
    done = fn.fresh("awake")
    head, wait = fn.fresh("asleep"), fn.fresh("wait")
    fn.line(f"br label %{head}")
    fn.label(head)
    is_open = _may_enter(_atomic_load(fn, state_at), who)
    fn.line(f"br i1 {is_open.ref}, label %{done}, label %{wait}")
    fn.label(wait)
    fn.call("pthread_cond_wait", I32, 0, condition, mutex)
    fn.line(f"br label %{head}")
    fn.label(done)
    _atomic_add(fn, _field(fn, pool, _SLEEP), -1)
    fn.call("pthread_mutex_unlock", I32, 0, mutex)


def _parallel(target: Target) -> Function:
    """Write ``parallel(pool, threads, function, P, S, extent, chunk, scratch, stride)``.

    ::

        alone = extent <= chunk or threads == 1 or RUNS >= cores or crowd + 1 >= cores or BUSY
        if alone: function(P, S, 0, extent, scratch)
        else: publish the job; open it; work; close it; wait until no worker is inside
    """
    kinds = [PTR, I64, PTR, PTR, PTR, I64, I64, PTR, I64]
    fn = Function("educe_parallel", kinds)
    pool, threads, function, pointers, sizes, extent, chunk, scratch, stride = fn.arguments
    threads = fn.minimum(threads, fn.const(I64, _MAX_SHARES))
    alone, shared, done = fn.fresh("alone"), fn.fresh("shared"), fn.fresh("end")
    attempt = fn.fresh("attempt")
    runs_at = _field(fn, pool, _RUNS)
    cores = fn.load(I64, runs_at, 1)
    crowded = (_atomic_load(fn, runs_at) >= cores) | (fn.load(I64, runs_at, 2) + 1 >= cores)
    small = (extent <= chunk) | (threads <= 1) | crowded
    fn.line(f"br i1 {small.ref}, label %{alone}, label %{attempt}")
    fn.label(attempt)
    taken = _exchange(fn, _field(fn, pool, _BUSY), 0, 1)
    fn.line(f"br i1 {taken.ref}, label %{shared}, label %{alone}")
    fn.label(alone)
    _call(fn, function, pointers, sizes, fn.const(I64, 0), extent, scratch)
    fn.line(f"br label %{done}")
    fn.label(shared)
    job = _field(fn, pool, _JOB)
    share = (extent + chunk * threads - 1) // (chunk * threads) * chunk
    fields = (function, pointers, sizes, scratch, extent, chunk, stride, threads, share)
    for index, value in enumerate(fields):
        fn.store(value, job, index)
    state_at = _field(fn, pool, _STATE)
    with fn.loop(0, threads) as number:
        _atomic_store(fn, number * share, fn.at(I64, _field(fn, pool, _NEXT), number * _LINE))
    _atomic_store(fn, (threads - 1) << _INSIDE_BITS, state_at)
    with fn.when(_atomic_load(fn, _field(fn, pool, _SLEEP)) > 0):
        fn.call("pthread_mutex_lock", I32, 0, _field(fn, pool, _MUTEX))
        fn.call("pthread_cond_broadcast", I32, 0, _field(fn, pool, _CONDITION))
        fn.call("pthread_mutex_unlock", I32, 0, _field(fn, pool, _MUTEX))
    _work(fn, pool, fn.const(I64, 0))
    inside = (1 << _INSIDE_BITS) - 1
    fn.line(f"%{fn.fresh('closed')} = atomicrmw and ptr {state_at.ref}, i64 {inside} seq_cst")
    waits = fn.var(fn.const(I64, 0))
    with fn.repeat_while() as go_on:
        _pause(fn, target)
        waits.set(waits.get() + 1)
        with fn.when(waits.get() > _PATIENCE):
            # Where other processes run as well, the worker that is waited for may need this very core.
            fn.call("sched_yield", I32, 0)
        go_on(_atomic_load(fn, state_at) != 0)
    _atomic_store(fn, 0, _field(fn, pool, _BUSY))
    fn.line(f"br label %{done}")
    fn.label(done)
    return fn


def _run(target: Target) -> Function:
    """Write ``run(context)``: each launch of the table in its turn.

    The first `objects` of the bases are addresses of NumPy arrays, whose data is looked up here; the others
    are addresses of memory. `clock`, unless null, receives the processor's time stamp before each launch and
    after the last.

    ::

        for i in objects: bases[i] = bases[i]->data
        RUNS += 1
        for launch in table:
            P[i] = bases[launch.base[i]] + launch.offset[i]
            parallel(pool, threads, launch.function, P, launch.sizes, ...)
        RUNS -= 1
    """
    fn = Function("educe_run", [PTR])
    (context,) = fn.arguments
    kinds = (PTR, I64, PTR, I64, PTR, I64, PTR, I64, PTR)
    table, count, bases, objects, scratch, stride, pool, threads, clock = (
        fn.load(kind, context, index) for index, kind in enumerate(kinds)
    )
    pointers = fn.stack(PTR, MAX_POINTERS)
    runs_at = _field(fn, pool, _RUNS)
    _atomic_add(fn, runs_at, 1)
    with fn.loop(0, objects) as index:
        fn.store(fn.load(PTR, fn.at(I8, fn.load(PTR, bases, index), ARRAY_DATA)), bases, index)
    word = fn.var(fn.const(I64, 0))
    timed = fn.emit(BOOL, 0, f"icmp ne ptr {clock.ref}, null")
    with fn.loop(0, count) as index:
        with fn.when(timed):
            fn.store(_time_stamp(fn), clock, index)
        launch = fn.at(I64, table, word.get())
        function = fn.load(PTR, launch, 0)
        words, num_pointers, extent, chunk = (fn.load(I64, launch, field) for field in (1, 2, 4, 5))
        with fn.loop(0, num_pointers) as number:
            place = fn.at(I64, launch, number * 2 + HEADER_WORDS)
            base = fn.load(PTR, bases, fn.load(I64, place, 0))
            fn.store(fn.at(I8, base, fn.load(I64, place, 1)), pointers, number)
        sizes = fn.at(I64, launch, num_pointers * 2 + HEADER_WORDS)
        arguments = (pool, threads, function, pointers, sizes, extent, chunk, scratch, stride)
        given = ", ".join(f"{each.type} {each.ref}" for each in arguments)
        fn.line(f"call void @educe_parallel({given})")
        word.set(word.get() + words)
    _atomic_add(fn, runs_at, -1)
    with fn.when(timed):
        fn.store(_time_stamp(fn), clock, count)
    return fn


def _time_stamp(fn: Function) -> Val:
    return fn.call("llvm.readcyclecounter", I64, 0)


def runtime_text(target: Target) -> str:
    """Return the runtime as LLVM IR."""
    lines: dict[str, None] = {}
    bodies = []
    for fn in (_parallel(target), _worker(target), _run(target), *calling.functions()):
        declared, body = fn.text().split("define ", 1)
        lines.update(dict.fromkeys(declared.splitlines()))
        bodies.append(f"define {body}")
    return "\n".join([*lines, *bodies])


class Runtime:
    """The runtime of this process: its compiled functions and its pool of threads.

    Attributes:
        target: What it is compiled for.
        run: Runs a context, while other Python threads may go on.
        call: The same if the inputs are arrays of the types that the context names; returns whether.
        call_briefly: The same for runs of microseconds, for which letting others go on costs more.
        answer: The address of what a builtin function of Python calls; see `calling.builtin`.
        pool: The address of the pool.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._loader = Loader()
        key = Key("kernel", "runtime", (("target", repr(target)), ("layout", str(calling.LAYOUT)), *origin()))
        code = stored(key, lambda: jit.object_code(runtime_text(target), target))
        self._loader.load([code])
        run, call = (self._loader.address(name) for name in ("educe_run", "educe_call"))
        self.run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(run)
        self.call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(call)
        self.call_briefly = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(call)
        self.answer = self._loader.address("educe_answer")
        self._worker = self._loader.address("educe_worker")
        self._memory = (ctypes.c_int64 * (_POOL_WORDS + _LINE))()
        keep(self._memory)
        start = ctypes.addressof(self._memory)
        self.pool = start + (-start) % (8 * _LINE)
        self._libc = ctypes.CDLL(None)
        self._lock = ForkedLock()
        self.renew()
        renew_when_forked(self)
        calling.check_arrays(self.call, self.pool)

    def renew(self) -> None:
        """Have a pool without workers, as it also is in a forked child, whatever they did in its parent."""
        self._arguments: list[ctypes.Array[ctypes.c_int64]] = []
        ctypes.memset(self.pool, 0, 8 * _POOL_WORDS)
        ctypes.c_int64.from_address(self.pool + 8 * (_RUNS + 1)).value = max(2, usable_cores())
        self._libc.pthread_mutex_init(ctypes.c_void_p(self.pool + 8 * _MUTEX), None)
        self._libc.pthread_cond_init(ctypes.c_void_p(self.pool + 8 * _CONDITION), None)

    def crowd(self, by: int) -> None:
        """Count so many more, or fewer, threads beside one in which run follows run.

        Whenever one of them is in Python's code the others would else use the workers, and wait for these
        when it is back.
        """
        with self._lock:
            ctypes.c_int64.from_address(self.pool + 8 * (_RUNS + 2)).value += by

    def grow(self, threads: int) -> None:
        """Have at least `threads` threads, the caller's included.

        Raises:
            OSError: the system gives no more threads.
        """
        with self._lock:
            while len(self._arguments) < threads - 1:
                argument = (ctypes.c_int64 * 2)(self.pool, len(self._arguments) + 1)
                thread = ctypes.c_void_p()
                status = self._libc.pthread_create(
                    ctypes.byref(thread), None, ctypes.c_void_p(self._worker), ctypes.byref(argument)
                )
                if status:
                    raise OSError(status, os.strerror(status))
                self._libc.pthread_detach(thread)
                keep(argument)
                self._arguments.append(argument)


@cache
def runtime(target: Target | None = None) -> Runtime:
    """Return the process's runtime for `target`, made at the first call."""
    made = Runtime(target or host_target())
    made.grow(usable_cores())
    return made
