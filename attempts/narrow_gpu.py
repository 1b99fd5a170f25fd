"""Attempts at csa's backward for 128, 64 and 8 heads, interleaved: run from the root of the worktree narrow."""

import functools
import importlib
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
for folder in (HERE / "narrow", Path(".gpu/narrow"), HERE):
    if (folder / "variants.py").exists():
        sys.path.insert(0, str(folder))
        break

BEGAN = time.time()


def say(*words):
    print(f"[{time.time() - BEGAN:5.1f}]", *words, flush=True)


def module(name):
    from variants import load

    if name in ("csa", "gradient_sums", "combine"):
        return importlib.import_module(f"lemmata.kernels.{name}")
    if name != "placed_schedule":
        load("placed_schedule")
    return load(name)


def compile_one(name, factory, config):
    from lemmata.kernels.build import compiled

    try:
        compiled(getattr(module(name), factory), config)
    except Exception as error:
        print("FAILED to compile", name, factory, config, repr(error)[:500], flush=True)


def jobs():
    from lemmata.kernels.csa import choose
    from lemmata.kernels.gradient_sums import Config
    from lemmata.kernels.sparse_attention_config import BackwardConfig

    for name, heads in [("csa", (8, 64, 128)), ("placed_csa", (8, 64, 128)), ("narrow_csa", (8,))]:
        yield from ((compile_one, name, "csa_bwd", BackwardConfig(H, 512, 128, 512**-0.5)) for H in heads)
    for H, K in ((8, 512), (64, 512), (128, 1024)):
        yield compile_one, "csa", "csa_fwd", choose(4096, H, 512, K, 128, 512**-0.5)
    for name in ("gradient_sums", "sums8", "sums32"):
        for blocks in (1, 2):
            yield compile_one, name, "sum_window", Config(512, blocks, 128)
            yield compile_one, name, "sum_listed", Config(512, blocks)
    yield compile_one, "gradient_sums", "delta", Config(512)


class Attempt(NamedTuple):
    kernel: str  # module of csa_parts
    queries: int  # of a group, at most
    side: int = 0  # sort and sums of entries on another stream; 2: both sums, beside the next group's kernel
    sums: str = "gradient_sums"


def backward(tensors, a):
    """Do what bindings/gradients.py does, as the attempt has it."""
    import torch
    from lemmata.bindings import chunks
    from lemmata.bindings.gradients import Group, _listings

    grad_out, grad_lse, q, window_kv, compressed_kv, indices, sink, offset, out, lse = tensors
    window, scale = 128, 512**-0.5
    sums = module(a.sums)
    main = torch.cuda.current_stream()
    side = torch.cuda.Stream() if a.side else main
    every = [Group(b, s, offset + s.start) for b, s in chunks.groups(q, 0, a.queries)]
    T = compressed_kv.shape[1]
    side.wait_stream(main)
    with torch.cuda.stream(side):
        listings = list(_listings(indices, T, every))
    delta = module("gradient_sums").columns_product(out, grad_out)
    grad_q = torch.empty_like(q)
    totals = [sink.new_zeros(window_kv.shape), sink.new_zeros(compressed_kv.shape)]
    past = window_kv.shape[1] - q.shape[1]
    kept = []
    for g, listing in zip(every, listings, strict=True):
        first = max(past + g.queries.start - window + 1, 0)
        rows = slice(first, past + g.queries.stop)
        some = [g.of(x) for x in (grad_out, grad_lse, q, indices, lse, delta)]
        if len(kept) >= max(a.side, 1):
            main.wait_event(kept.pop(0)[0])
        of_window, of_entries = module(a.kernel).csa_parts(
            (some[0], some[1]), some[2], (window_kv[:, rows], compressed_kv), some[3], sink, g.offset,
            (some[4], some[5]), g.of(grad_q), window=window, scale=scale,
        )  # fmt: skip
        side.wait_stream(main)
        with torch.cuda.stream(side):
            sums.add_listed(of_entries, *listing, totals[1])
        with torch.cuda.stream(side if a.side == 2 else main):
            sums.add_window(of_window, totals[0][:, rows])
        if a.side:
            kept.append((side.record_event(), of_window, of_entries))  # until the other stream has read them
    main.wait_stream(side)
    if a.kernel != "csa":
        totals = [x.unflatten(-1, (-1, 4, 4, 2)).transpose(-3, -2).flatten(-4) for x in totals]
    weight = torch.where(lse != torch.inf, (sink - lse).sigmoid(), 0.0)
    return grad_q, totals[0].bfloat16(), totals[1].bfloat16(), -(delta * weight).sum((0, 1))


ATTEMPTS = {
    128: {
        "66 queries, 132 blocks (predicted 11.3 ms)": Attempt("csa", 66),
        "128 queries (10.8)": Attempt("csa", 128),
        "256 queries (10.5)": Attempt("csa", 256),
        "from registers, 66 (10.0)": Attempt("placed_csa", 66),
        "from registers, 128 (9.5)": Attempt("placed_csa", 128),
        "from registers, 128, side stream (9.2)": Attempt("placed_csa", 128, 1),
    },
    64: {
        "from registers, 256 (2.98)": Attempt("placed_csa", 256),
        "from registers, 256, side stream (2.78)": Attempt("placed_csa", 256, 1),
    },
    8: {
        "512 queries (2.85)": Attempt("csa", 512),
        "from registers, 256 (2.7)": Attempt("placed_csa", 256),
        "keys times heads, 256 (2.05)": Attempt("narrow_csa", 256),
        "keys times heads, 512 (1.9)": Attempt("narrow_csa", 512),
        "keys times heads, 256, sums of 8 ahead": Attempt("narrow_csa", 256, 0, "sums8"),
        "keys times heads, 256, sums of 32 ahead": Attempt("narrow_csa", 256, 0, "sums32"),
        "keys times heads, 256, side stream (1.85)": Attempt("narrow_csa", 256, 1),
        "keys times heads, 512, side stream (1.75)": Attempt("narrow_csa", 512, 1),
        "keys times heads, 128 twice, sums beside (1.75)": Attempt("narrow_csa", 128, 2),
        "keys times heads, 256 twice, sums beside (1.6)": Attempt("narrow_csa", 256, 2),
    },
}
BOUNDS = {128: 3900.0, 64: 1083.0, 8: 300.0}


def kernels_of(call):
    """Return the device time of each kernel of one call, us."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as p:
        call()
        torch.cuda.synchronize()
    events = sorted(p.key_averages(), key=lambda e: -e.device_time_total)
    return ", ".join(f"{e.key[:28]} {e.device_time_total:.0f}/{e.count}" for e in events[:7])


def one_case(H):
    import torch
    from lemmata.bench import csa, timing
    from lemmata.bench.attention import Sizes, _upstream
    from lemmata.bench.peers import difference

    K = 1024 if H == 128 else 512
    sizes = Sizes(1, 4096, H, 8192, 32768)
    sets = []
    for _ in range(3):
        x = csa.inputs(sizes, K)
        sets.append([t.contiguous() for t in csa._tensors(x, _upstream(x))])
    say(H, "heads: inputs are made")
    shipped = functools.partial(torch.ops.lemmata.csa_bwd.default, *sets[0], 128, 512**-0.5)
    expected, good = [t.float() for t in shipped()], {}
    try:
        say(H, "ships |", kernels_of(shipped))
    except Exception as error:
        say("no profile", repr(error)[:200])
    for name, a in ATTEMPTS[H].items():
        try:
            found = backward(sets[0], a)
            torch.cuda.synchronize()
            same = [bool(torch.equal(e, f.float())) for e, f in zip(expected, found)]
            off = [difference(e, f.float()) for e, f in zip(expected, found)]
            right = all(same) if a.kernel != "narrow_csa" else all(o < 1e-5 for o in off)
            again = backward(sets[0], a)
            steady = all(torch.equal(e, f) for e, f in zip(found, again))
            say(H, name, "RIGHT" if right and steady else "WRONG", "same bits", same, "difference", [f"{o:.1e}" for o in off])
            if right and steady:
                good[name] = a
            del found, again
            say(H, name, "|", kernels_of(lambda: backward(sets[0], a)))
        except Exception as error:
            say(H, name, "FAILED", repr(error)[:1000])
    del expected

    def contender(call):
        turn = iter(range(10**6))
        return lambda: functools.partial(call, sets[next(turn) % len(sets)])

    contenders = {"ships": contender(lambda t: torch.ops.lemmata.csa_bwd.default(*t, 128, 512**-0.5))}
    for name, a in good.items():
        contenders[name] = contender(functools.partial(lambda a, t: backward(t, a), a))
    timing.BLOCKS, timing.SUSTAINED_S = 3, 0.3
    timing.calls_of = lambda bytes_per_call: 3
    for f in timing.measure(timing.Case("csa", f"{H}", 1, BOUNDS[H], "", None, contenders)):
        say(H, "heads |", f.contender, "| burst", f.burst_us, "sustained", f.sustained_us, "noise", f.noise)


if __name__ == "__main__":
    import subprocess

    if len(sys.argv) > 1:
        one_case(int(sys.argv[1]))
    else:
        from lemmata.warmup import side_by_side

        for _ in side_by_side(jobs(), 16):
            pass
        say("compiled")
        for heads in (128, 8, 64):
            try:
                subprocess.run([sys.executable, __file__, str(heads)], timeout=90)
            except subprocess.TimeoutExpired:
                say(heads, "heads took too long")
        say("done")
