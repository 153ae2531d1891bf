"""What a helper process runs: `helper.py MODULE ARGUMENTS...`, with JVPN_PATH for sys.path.

Calls `main` of the module with the arguments; numbers come as numbers.
"""

import gc
import importlib
import os
import sys

if __name__ == "__main__":
    sys.path[:] = os.environ["JVPN_PATH"].split(os.pathsep)
    arguments = [int(word) if word.isdecimal() else word for word in sys.argv[2:]]
    gc.disable()  # modules stay
    module = importlib.import_module(sys.argv[1])
    gc.freeze()
    gc.enable()
    module.main(*arguments)
    sys.stderr.flush()
    os._exit(0)  # nothing is left to tidy up, and a restart may be waiting
