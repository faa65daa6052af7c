"""Memory that tensors free stays with the process."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, sys
import torch
from cocomix.allocator import keep_freed_memory

def pages_of_a_round():
    for _ in range(20):  # the heap needs a few rounds until its gaps fit
        block = torch.ones(16 << 20)
        del block
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        block = torch.ones(16 << 20)
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
found = {"mapped_anew": pages_of_a_round(), "kept": keep_freed_memory(), "after": pages_of_a_round()}
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_blocks_that_were_freed_need_no_new_pages() -> None:
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    found = json.loads(said)

    if not found["kept"]:
        pytest.skip("this C library has no such setting")
    assert found["mapped_anew"] > 100, "otherwise nothing is to be gained"
    assert found["after"] < found["mapped_anew"] / 20
