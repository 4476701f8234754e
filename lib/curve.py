"""A run's losses as a picture."""
import math

from data import files


def draw_curve(path, rows, title):
    "metrics rows -> an SVG of training and validation loss against steps that any browser opens"
    points = lambda key: [(r['step'], r[key]) for r in rows if key in r and math.isfinite(r[key])]
    train, val = points('train_loss'), points('val_loss')
    if not train + val: return
    W, H, L, R, T, B = 760, 420, 60, 20, 40, 45
    x1, ys = max(1, max(x for x, _ in train + val)), [y for _, y in train + val]
    lo, hi = min(ys), max(ys)
    lo, hi = lo - 0.03 * (hi - lo or 1), hi + 0.03 * (hi - lo or 1)
    X, Y = lambda x: L + (W - L - R) * x / x1, lambda y: H - B - (H - T - B) * (y - lo) / (hi - lo)
    def ticks(a, b, n=6):
        power = 10 ** math.floor(math.log10((b - a) / n))
        unit = next(m * power for m in (1, 2, 5, 10) if m * power >= (b - a) / n)
        return [i * unit for i in range(math.ceil(a / unit), math.floor(b / unit) + 1)]
    words = lambda x, y, text, how='text-anchor="middle"': f'<text x="{x:.1f}" y="{y:.1f}" {how}>{text}</text>'
    rule = lambda y, color: f'<line x1="{L}" x2="{W - R}" y1="{y:.1f}" y2="{y:.1f}" stroke="{color}"/>'
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {H}" font-family="sans-serif" font-size="12">',
           f'<rect width="{W}" height="{H}" fill="white"/>', words(L, 22, title, 'font-size="14" font-weight="bold"')]
    for t in ticks(lo, hi): out += [rule(Y(t), '#e4e4e4'), words(L - 8, Y(t) + 4, f'{t:.3g}', 'text-anchor="end"')]
    for t in ticks(0, x1): out.append(words(X(t), H - B + 18, f'{t:g}'))
    out += [rule(H - B, 'black'), words((L + W - R) / 2, H - 8, 'optimizer steps')]
    for name, line, color, at in (('training loss', train, '#9ab8d8', 250), ('validation loss', val, '#c0392b', 120)):
        if not line: continue
        places = ' '.join(f'{X(x):.1f},{Y(y):.1f}' for x, y in line)
        out += [f'<polyline fill="none" stroke="{color}" stroke-width="1.8" points="{places}"/>',
                words(W - R - at, 22, f'{name} {line[-1][1]:.3f}', f'fill="{color}"')]
    for x, y in val:                                 # dots that tell their numbers
        out.append(f'<circle cx="{X(x):.1f}" cy="{Y(y):.1f}" r="2.6" fill="#c0392b">'
                   f'<title>step {x}: {y:.4f}</title></circle>')
    files.write_atomic(path, lambda f: f.write('\n'.join(out + ['</svg>']).encode()))
