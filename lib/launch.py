"""Signals, restarts and the folder of a run."""
import json
import os
import signal
import sys

from data import files


# what ends a run after the step at hand
SIGNALS = [getattr(signal, s) for s in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, s)]


def launch_id():
    "tells one torchrun from another: its --rdzv_id, which is the same unless given, and on one node its process"
    one_node = os.environ.get('LOCAL_WORLD_SIZE') == os.environ.get('WORLD_SIZE')
    return [os.environ.get('TORCHELASTIC_RUN_ID'), os.getppid() if one_node else 0]


def make_room(out, resumed):
    "an out_dir that can be written; an earlier run in it is moved aside"
    if not resumed and os.path.exists(os.path.join(out, 'ckpt.pt')):
        aside = next(a for i in range(1, 10 ** 9) if not os.path.exists(a := f'{out.rstrip("/")}-{i}'))
        os.rename(out, aside)
        print(f'{out} held an earlier run, now in {aside} (--resume --out_dir={aside} goes on with it)')
    try:
        os.makedirs(out, exist_ok=True)
        for name in os.listdir(out):                 # of a run that was killed while it wrote
            if name.endswith('.tmp'): os.remove(os.path.join(out, name))
        about = json.dumps(dict(pid=os.getpid(), argv=sys.argv, launch=launch_id())).encode()
        files.write_atomic(os.path.join(out, 'run.json'), lambda f: f.write(about))
    except OSError as e: raise OSError(f'--out_dir={out} cannot be written ({e.strerror}): choose another') from None
