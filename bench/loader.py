"""Loads safetensors files on request, for bench/read.py: loader.py UID

Becomes user UID once torch is imported. For each line "THREADS PATH" it loads the file with
safetensors.torch.load_file, copies every tensor with that many threads of torch, and prints the
bytes, the seconds and the processor time that took."""

import json
import os
import resource
import sys
import time

import torch
from safetensors.torch import load_file


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main():
    uid = int(sys.argv[1])
    if os.getuid() != uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        threads, path = line.rstrip("\n").split(" ", 1)
        torch.set_num_threads(int(threads))
        start, used = time.monotonic(), cpu()
        loaded = load_file(path)
        copies = {name: tensor.clone() for name, tensor in loaded.items()}
        seconds, used = time.monotonic() - start, cpu() - used
        size = sum(t.numel() * t.element_size() for t in copies.values())
        del loaded, copies
        print(json.dumps({"bytes": size, "seconds": seconds, "cpu": used}), flush=True)


if __name__ == "__main__":
    main()
