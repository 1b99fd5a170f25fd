"""Launch the backward in groups of queries whose parts fit a workspace."""

import torch

from ..bindings.chunks import groups
from .build import aligned, build
from .csa_backward import BackwardConfig, csa_bwd
from .sparse_attention_sums import delta, sum_listed, sum_window

WORKSPACE = 160 * 2**20  # bytes of the parts of a group of queries


def listed(indices, T, pieces):
    """The order in which each group's parts are summed, and where each row's begin: for each group, (order, starts)."""
    B, S, K = indices.shape
    device = indices.device
    rows = B * T
    firsts = torch.tensor([b.start * S + s.start for b, s in pieces], device=device)
    group = torch.searchsorted(firsts, torch.arange(B * S, device=device), right=True).sub_(1)
    sequence = torch.arange(B, device=device).view(B, 1, 1)
    wide = len(pieces) * (rows + 1) >= 2**31
    row = torch.where((indices >= 0) & (indices < T), indices + sequence * T, rows)
    keys = (group.view(B, S, 1) * (rows + 1) + row).to(torch.int64 if wide else torch.int32)
    keys, order = keys.flatten().sort(stable=True)
    most = max(b.stop - b.start for b, _ in pieces)
    begins = torch.tensor([g * (rows + 1) + b.start * T for g, (b, _) in enumerate(pieces)], device=device)
    starts = torch.searchsorted(keys, (begins.view(-1, 1) + torch.arange(most * T + 1, device=device)).to(keys.dtype))
    for g, (b, s) in enumerate(pieces):
        first = (b.start * S + s.start) * K
        end = first + (b.stop - b.start) * (s.stop - s.start) * K
        n = (b.stop - b.start) * T
        yield (order[first:end] - first).int(), (starts[g, : n + 1] - first).int()


def csa_backward(grad_out, grad_lse, q, window_kv, compressed_kv, indices, sink, offset, out, lse, window, scale):
    B, S, H, D = q.shape
    T, K, R = compressed_kv.shape[1], indices.shape[2], window_kv.shape[1]
    cfg = BackwardConfig(H, D, window, scale)
    grad_out, grad_lse, q, window_kv, compressed_kv, indices, sink, offset, out, lse = map(
        aligned, (grad_out, grad_lse, q, window_kv, compressed_kv, indices, sink, offset, out, lse)
    )
    dl = torch.empty_like(lse)
    build(delta, cfg)(out.view(-1, D), grad_out.view(-1, D), dl.view(-1))
    grad_q = torch.empty_like(q)
    total_window, total_entries = sink.new_zeros(window_kv.shape), sink.new_zeros(compressed_kv.shape)
    per_query = (K + window) * cfg.head_blocks * D * 2
    pieces = list(groups(q, 0, max(WORKSPACE // per_query // 132 * 132, 1)))
    for (b, s), (order, starts) in zip(pieces, listed(indices, T, pieces), strict=True):
        nb, ns = b.stop - b.start, s.stop - s.start
        rows = slice(max(R - S + s.start - window + 1, 0), R - S + s.stop) if nb == 1 else slice(0, R)
        wp = q.new_empty(nb, ns, window, cfg.head_blocks, D)
        ep = q.new_empty(nb, ns, K, cfg.head_blocks, D)
        build(csa_bwd, cfg)(
            grad_out[b, s], grad_lse[b, s], q[b, s], window_kv[b, rows], compressed_kv[b], indices[b, s], sink,
            offset[b] + s.start, lse[b, s], dl[b, s], grad_q[b, s], wp, ep,
        )
        build(sum_window, cfg)(wp, total_window[b, rows])
        build(sum_listed, cfg)(ep.view(-1, cfg.head_blocks, D), order, starts, total_entries[b].view(-1, D))
    some = lse != torch.inf
    grad_sink = -torch.where(some, dl * (sink - lse).sigmoid(), 0.0).sum((0, 1))
    return grad_q, total_window.to(q.dtype), total_entries.to(q.dtype), grad_sink
