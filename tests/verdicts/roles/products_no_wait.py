"""Wrong: the multiplying role does not wait for the tile."""

import tilelang.language as T

from verdicts import ASYNC, STRICT, Refuted, contract

ROLE = 128  # threads
n = T.dynamic("n")


@T.prim_func
def kernel(Q: T.Tensor((64, 64), "bfloat16"), A: T.Tensor((n, 64, 64), "bfloat16"), C: T.Tensor((64, 64), "float32")):
    with T.Kernel(1, threads=2 * ROLE):
        q = T.alloc_shared((64, 64), "bfloat16")
        k = T.alloc_shared((64, 64), "bfloat16")
        p = T.alloc_shared((64, 64), "bfloat16")
        z = T.alloc_fragment((64, 64), "float32")
        weights = T.alloc_fragment((64, 64), "bfloat16")
        acc = T.alloc_fragment((64, 64), "float32")
        fetched = T.alloc_barrier(ROLE)
        ready = T.alloc_barrier(ROLE)
        spare = T.alloc_barrier(ROLE)
        free = T.alloc_barrier(ROLE)
        thread = T.get_thread_binding()
        if thread < ROLE:
            for t in T.serial(n):
                T.barrier_wait(free, (t + 1) % 2)
                for i, j in T.Parallel(64, 64, annotations=ASYNC):
                    k[i, j] = A[t, i, j]
                T.cp_async_barrier_noinc(ready)
                T.barrier_arrive(spare)
        else:
            for i, j in T.Parallel(64, 64, annotations=ASYNC):
                q[i, j] = Q[i, j]
            T.cp_async_barrier_noinc(fetched)
            T.fill(acc, 0)
            T.barrier_wait(fetched, 0)
            T.fence_proxy_async()
            for t in T.serial(n):
                T.fence_proxy_async()
                T.wgmma_gemm(q, k, z, transpose_B=True, clear_accum=True)
                T.wait_wgmma(0)
                T.copy(z, weights)
                T.copy(weights, p)
                T.fence_proxy_async()
                T.sync_threads(3, ROLE)
                T.wgmma_gemm(p, k, acc)
                T.wait_wgmma(0)
                T.barrier_wait(spare, t % 2)
                T.barrier_arrive(free)
            T.copy(acc, C)


CONTRACT = contract(kernel, "C")
OPTIONS = {"pass_configs": {**STRICT, "tl.disable_warp_specialized": True}}
VERDICT = Refuted(
    "L1",
    phase="no thread arrives at ready[0] for the next iteration before all have arrived for this one",
    async_="no copy's write of k meets this copy's write of k, not committed",
    race="read of k ... write of k",
)
