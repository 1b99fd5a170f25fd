import sys, time, torch, math
from lemmata.kernels.sparse_attention_launch import csa_backward
import lemmata.kernels.sparse_attention_launch as L
from lemmata.reference import csa as ref
import lemmata
torch.manual_seed(0)
def make(B,S,P,T,K,H,D,window,dev='cuda'):
    g=lambda *s: torch.randn(*s,device=dev)
    q,w,c=g(B,S,H,D).bfloat16(),g(B,P+S,D).bfloat16(),g(B,T,D).bfloat16()
    idx=torch.stack([torch.stack([torch.randperm(T,device=dev)[:K] for _ in range(S)]) for _ in range(B)]).int() if S<=256 else torch.rand(B,S,T,device=dev).topk(K,-1).indices.int()
    idx[torch.rand(idx.shape,device=dev)<0.1]=-1
    sink=g(H); off=torch.full((B,),P,dtype=torch.int32,device=dev)
    return q,w,c,idx,sink,off
def err(a,b): return ((a.double()-b.double()).norm()/b.double().norm()).item()
for B,S,P,T,K,H,D,window in ((1,200,50,300,100,64,512,128),(2,70,10,90,40,128,512,128),(1,40,0,90,40,16,512,100)):
    q,w,c,idx,sink,off=make(B,S,P,T,K,H,D,window); scale=D**-.5
    out,lse=lemmata.csa(q,w,c,idx,sink,window=window,offset=off)
    go=torch.randn_like(out); gl=torch.randn_like(lse)
    got=csa_backward(go,gl,q,w,c,idx,sink,off,out,lse,window,scale)
    x=[t.double() for t in (go,gl,q,w,c)]
    o,l=ref.csa(*x[2:],idx,sink.double(),off,window,scale)
    want=ref.csa_bwd(*x,idx,sink.double(),off,o,l,window,scale)
    plain=ref.csa_bwd(go,gl,q,w,c,idx,sink,off,out,lse,window,scale)
    print((B,S,P,T,K,H,D,window),[f'{err(a,b):.2e}/{err(p,b):.2e}' for a,p,b in zip(got,plain,want)],flush=True)
q,w,c,idx,sink,off=make(1,4096,0,8192,512,64,512,128)
out,lse=lemmata.csa(q,w,c,idx,sink,window=128,offset=off)
go=torch.randn_like(out); gl=torch.zeros_like(lse)
a=(go,gl,q,w,c,idx,sink,off,out,lse,128,512**-.5)
first=csa_backward(*a)
torch.cuda.synchronize()
torch.cuda.reset_peak_memory_stats(); m0=torch.cuda.memory_allocated()
again=csa_backward(*a)
print('peak MiB',(torch.cuda.max_memory_allocated()-m0)/2**20, 'same', all(torch.equal(x,y) for x,y in zip(first,again)))
def timed(f,n=10):
    f(); torch.cuda.synchronize(); ts=[]
    for _ in range(n):
        e=[torch.cuda.Event(enable_timing=True) for _ in 'ab']; e[0].record(); f(); e[1].record(); torch.cuda.synchronize(); ts.append(e[0].elapsed_time(e[1]))
    return sorted(ts)[n//2]
print('fwd ms',timed(lambda: lemmata.csa(q,w,c,idx,sink,window=128,offset=off)))
for ws in (96,160,224,320):
    L.WORKSPACE=ws*2**20
    print('bwd ms',ws,timed(lambda: csa_backward(*a)),flush=True)
L.WORKSPACE=160*2**20
from torch.profiler import profile, ProfilerActivity
with profile(activities=[ProfilerActivity.CUDA]) as p:
    csa_backward(*a); torch.cuda.synchronize()
print(p.key_averages().table(sort_by='cuda_time_total',row_limit=25,max_name_column_width=60))
