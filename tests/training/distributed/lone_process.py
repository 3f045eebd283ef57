"""One of the processes that test_launcher.py starts: the last one ends as its argument says.

`exit` ends it with status 3, `killed` by SIGKILL, `alone` as if another process had left it; the
first process then waits until the launcher ends it. With `done` all end well.
"""

import os
import signal
import sys

if __name__ == "__main__":
    how = sys.argv[1]
    is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    if how != "done" and not is_last:
        signal.pause()
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit({"done": 0, "exit": 3, "alone": 75}[how])
