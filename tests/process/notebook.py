"""Cells of a notebook, run one after another in one interpreter with an event loop running, as Jupyter does.

    python notebook.py FOLDER INVITE

Reads cells from standard input, each as a line of JSON, and answers each with a line: what the cell has left in `said`,
or its error.
"""

import asyncio
import json
import sys
from typing import Any

PRELUDE = """
import signal, sys, time, torch, wantrain
from tests.process.trainer import Descent
torch.set_num_threads(1)
before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
inputs, targets = torch.randn(64, 16), torch.randn(64, 4)

def join(daemon=None, **options):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4))
    optimizer = Descent(model.parameters(), lr=0.05)
    if daemon is not None:
        return model, optimizer, wantrain.join(model, optimizer, daemon=daemon)
    options = {"home": f"{folder}/notebook", "name": "notebook", "bind": "127.0.0.1:0"} | options
    return model, optimizer, wantrain.join(model, optimizer, invite=invite, peer_options=options)

def train(until):
    while not until():
        time.sleep(0.004)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
"""


async def main() -> None:
    cells: dict[str, Any] = {"folder": sys.argv[1], "invite": sys.argv[2]}
    exec(PRELUDE, cells)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        cells["said"] = None
        try:
            exec(json.loads(line), cells)  # in the main thread, while the loop runs
            answer = {"said": cells["said"]}
        except BaseException as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.new_event_loop().run_until_complete(main())  # asyncio.run would take Ctrl-C for itself, as Jupyter does not
