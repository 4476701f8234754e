"""Small pieces of the texts that a person reads."""
import difflib


def nearest(name, names, before=''):
    """A question that offers the most similar of `names`, to stand at the end of a message, or
    ''."""
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f'; did you mean {before}{close[0]}?' if close else ''


def further(names):
    """How many names there are beyond the one that a message shows, or ''."""
    return f' (and {len(names) - 1} more)' if len(names) > 1 else ''


def readable(name):
    """The name of a metric in words: val_loss -> validation loss."""
    known = {'val_loss': 'validation loss', 'val_bpb': 'bits per byte'}
    return known.get(name, name.removeprefix('val_').replace('_', ' '))


def span(seconds):
    """A duration in the unit that suits it: 12 s, 34 min, 5.6 h."""
    if seconds < 100:
        return f'{seconds:.0f} s'
    if seconds < 6000:
        return f'{seconds / 60:.0f} min'
    return f'{seconds / 3600:.1f} h'


def scores(metrics):
    """Metrics as 'name value, name value'."""
    return ', '.join(f'{readable(name)} {value:.4f}' for name, value in metrics.items())
