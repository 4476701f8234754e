"""The losses of a run as a picture, loss.svg, that any browser opens."""
import math

from data import files

WIDTH = 760
HEIGHT = 420
LEFT = 60           # margins
RIGHT = 20
TOP = 40
BOTTOM = 45
BLUE = '#9ab8d8'
RED = '#c0392b'


def draw_curve(path, rows, title):
    """Draws training and validation loss against optimizer steps. rows: dicts of metrics, as
    metrics.jsonl has them."""
    training = points(rows, 'train_loss')
    validation = points(rows, 'val_loss')
    if not training + validation:
        return
    last_step = max(1, max(step for step, _ in training + validation))
    losses = [loss for _, loss in training + validation]
    margin = 0.03 * (max(losses) - min(losses) or 1)
    low = min(losses) - margin
    high = max(losses) + margin

    def x_of(step):
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last_step

    def y_of(loss):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (loss - low) / (high - low)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           words(LEFT, 22, title, 'font-size="14" font-weight="bold"')]
    for loss in ticks(low, high):
        out.append(rule(y_of(loss), '#e4e4e4'))
        out.append(words(LEFT - 8, y_of(loss) + 4, f'{loss:.3g}', 'text-anchor="end"'))
    for step in ticks(0, last_step):
        out.append(words(x_of(step), HEIGHT - BOTTOM + 18, f'{step:g}'))
    out.append(rule(HEIGHT - BOTTOM, 'black'))
    out.append(words((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, 'optimizer steps'))
    lines = [('training loss', training, BLUE, 250), ('validation loss', validation, RED, 120)]
    for name, line, color, from_right in lines:
        if line:
            places = ' '.join(f'{x_of(step):.1f},{y_of(loss):.1f}' for step, loss in line)
            out.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.8" '
                       f'points="{places}"/>')
            label = f'{name} {line[-1][1]:.3f}'
            out.append(words(WIDTH - RIGHT - from_right, 22, label, f'fill="{color}"'))
    for step, loss in validation:                        # dots that tell their numbers
        out.append(f'<circle cx="{x_of(step):.1f}" cy="{y_of(loss):.1f}" r="2.6" fill="{RED}">'
                   f'<title>step {step}: {loss:.4f}</title></circle>')
    out.append('</svg>')
    text = '\n'.join(out).encode()
    files.write_atomic(path, lambda f: f.write(text))


def points(rows, name):
    """The finite values of a metric -> [(step, value)]."""
    return [(row['step'], row[name]) for row in rows if name in row and math.isfinite(row[name])]


def ticks(low, high, n=6):
    """At most about n round numbers between low and high."""
    power = 10 ** math.floor(math.log10((high - low) / n))
    unit = next(m * power for m in (1, 2, 5, 10) if m * power >= (high - low) / n)
    return [i * unit for i in range(math.ceil(low / unit), math.floor(high / unit) + 1)]


def words(x, y, text, style='text-anchor="middle"'):
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{text}</text>'


def rule(y, color):
    return f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{color}"/>'
