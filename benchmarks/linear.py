"""Linear layers on one core of a CPU: this project's kernel, torch's own product and oneDNN's, forward and back.

  python benchmarks/linear.py
  python benchmarks/linear.py --rows 1000 --tries 50

"same" calls have the same number of rows each time, "other" ones another each time, as batches of episodes have: oneDNN
compiles a program for each number. The three products of a layer are its values x W^T + b, the gradient of its inputs
and that of its weights. Libraries take turns; milliseconds are medians, and the layers are those of QMIX at the shapes
of `learner_step.py` and of SMAX 3m with JaxMARL's mixer. Writes NAME.json to results/published.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from jobs import add_sources, positive, publish
from limits import HAS_ONEDNN, matrix_peak

LAYERS = {  # inputs, outputs
    "3m: first layer": (86, 64),
    "gates of a GRU of 64": (64, 192),
    "values of 8 actions": (64, 8),
    "SMAX: hypernetwork, first layer": (72, 256),
    "SMAX: hypernetwork, second layer": (256, 96),
    "27m_vs_30m: first layer": (800, 64),
    "27m_vs_30m: hypernetwork, second layer": (64, 864),
}
PRODUCTS = ("values", "gradient of inputs", "gradient of weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="linear", help="of the file in results/published")
    parser.add_argument("--rows", nargs="+", type=positive, default=[1000, 10000])
    parser.add_argument("--tries", type=positive, default=20)
    args = parser.parse_args()
    add_sources()
    import torch

    from utils import native
    from utils.memory import keep_freed_memory

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    ways = {"kernel": _kernel} if native.is_there() else {}
    ways |= {"torch": _torch} | ({"oneDNN": _onednn} if HAS_ONEDNN else {})
    peak = matrix_peak("cpu")
    print(
        f"{peak / 1e9:.0f} GFLOP/s of large products; below: ms with equal numbers of rows, and with another each time"
    )
    table: dict[str, dict] = {}
    for layer, (inputs, outputs) in LAYERS.items():
        for rows in args.rows:
            for product in PRODUCTS:
                row = measure(ways, product, rows, inputs, outputs, args.tries)
                row["limit_ms"] = 1000 * 2 * rows * inputs * outputs / peak
                table[f"{layer}, {rows} rows, {product}"] = row
            print(as_text(f"{layer} ({inputs} -> {outputs}), {rows} rows", table, f"{layer}, {rows} rows"), flush=True)
    publish(args.name, vars(args), flops=peak, table=table)


def measure(ways: dict[str, Callable], product: str, rows: int, inputs: int, outputs: int, tries: int) -> dict:
    """Milliseconds by library, with the same and with other numbers of rows."""
    import torch

    x, grad = torch.randn(rows + tries, inputs), torch.randn(rows + tries, outputs)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    found: dict[str, list[float]] = {f"{way}, {how}": [] for way in ways for how in ("same", "other")}
    for n in range(tries):
        for name, times in found.items():
            way, how = name.split(", ")
            count = rows + (tries - n if how == "other" else 0)  # fewer and fewer: none needs fresh memory
            started = time.perf_counter()
            ways[way](product, x[:count], grad[:count], weight, bias)
            times.append(1000 * (time.perf_counter() - started))
    return {name: float(np.median(times)) for name, times in found.items()}


def as_text(title: str, table: dict[str, dict], key: str) -> str:
    rows = {product: table[f"{key}, {product}"] for product in PRODUCTS}
    lines = [title, f"{'':<22}" + "".join(f"{name:>15}" for name in next(iter(rows.values())))]
    lines += [f"{product:<22}" + "".join(f"{ms:>15.2f}" for ms in row.values()) for product, row in rows.items()]
    return "\n".join(lines) + "\n"


def _kernel(product: str, x, grad, weight, bias) -> None:
    from utils import native

    P, (O, I) = len(x), weight.shape
    if product == "values":
        native.call("linear", x, weight, 1, I, bias, P, I, O, 1, x.new_empty(P, O))
    elif product == "gradient of inputs":
        native.call("linear", grad, weight, I, 1, None, P, O, I, 1, x.new_empty(P, I))
    else:
        native.call("linear_gradients", grad, x, P, O, I, 1, x.new_empty(O, I), x.new_empty(O))


def _torch(product: str, x, grad, weight, bias) -> None:
    from torch.nn.functional import linear

    if product == "values":
        linear(x, weight, bias)
    elif product == "gradient of inputs":
        grad @ weight
    else:
        grad.t() @ x, grad.sum(dim=0)


def _onednn(product: str, x, grad, weight, bias) -> None:
    import torch

    def multiply(a, b, c=None) -> None:
        torch.ops.mkldnn._linear_pointwise(a, b, c, "none", [], "")

    if product == "values":
        multiply(x, weight, bias)
    elif product == "gradient of inputs":
        multiply(grad, weight.t())
    else:
        wide = weight.shape[0] > weight.shape[1]  # up to twice as fast with the narrower matrix on the left
        multiply(*((x.t(), grad.t()) if wide else (grad.t(), x.t())))
        grad.sum(dim=0)


if __name__ == "__main__":
    main()
