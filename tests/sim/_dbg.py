import sys, traceback
from tests.sim import simulate
seed=int(sys.argv[1])
orig=simulate._play
def p(w):
    try: orig(w)
    except Exception:
        traceback.print_exc(limit=-7); raise
simulate._play=p
o=simulate.run_seed(seed)
n=int(sys.argv[2]) if len(sys.argv)>2 else 30
print("\n".join(l[:260] for l in o.trace[-n:])); print(o.failure)
