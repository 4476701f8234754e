"""Small texts that messages are made of."""
import difflib


def nearest(name, names, before=''):
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f'; did you mean {before}{close[0]}?' if close else ''


def further(names): return f' (and {len(names) - 1} more)' if len(names) > 1 else ''


def readable(name):
    known = {'val_loss': 'validation loss', 'val_bpb': 'bits per byte'}
    return known.get(name, name.removeprefix('val_').replace('_', ' '))


def span(seconds):
    if seconds < 100: return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 6000 else f'{seconds / 3600:.1f} h'
