"""Loads safetensors files on request, for bench/read.py: loader.py UID MODEL

Makes room for the tensors of the safetensors file MODEL and becomes user UID. For each line
"THREADS PATH" it loads the file with safetensors.torch.load_file, copies every tensor with that
many threads of torch to memory that it has touched before (or the time would be that of new
pages), and prints the bytes, the seconds and the processor time that took."""

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
    uid, model = int(sys.argv[1]), sys.argv[2]
    copies = {name: torch.zeros_like(tensor) for name, tensor in load_file(model).items()}
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
        for name, tensor in loaded.items():
            copies[name].copy_(tensor)
        seconds, used = time.monotonic() - start, cpu() - used
        size = sum(t.numel() * t.element_size() for t in copies.values())
        del loaded, tensor  # or the file would stay mapped
        print(json.dumps({"bytes": size, "seconds": seconds, "cpu": used}), flush=True)


if __name__ == "__main__":
    main()
