"""
A real Prometheus filled with samples of our own making: any time, any gap, any restart, and no waiting.

`promtool` writes the blocks; the server only reads them. Stale markers cannot be written so: a series that ends is seen for five
minutes more, as after a lost scrape.
"""

import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from services.prometheus import PrometheusServer, find_prometheus

Labels = Mapping[str, str]


@dataclass(slots=True)
class Samples:
    """Series by metric and labels: values by time in whole milliseconds since the epoch."""

    series: dict[str, dict[str, list[tuple[int, float]]]] = field(default_factory=dict)

    def add(self, metric: str, labels: Labels, points: Iterable[tuple[int, float]]) -> None:
        text = ",".join(f'{k}="{_escaped(v)}"' for k, v in sorted(labels.items()))
        self.series.setdefault(metric, {}).setdefault(text, []).extend(points)

    def exposition(self) -> str:
        """OpenMetrics, which `promtool` reads; metrics are of unknown type, so that any name may have any labels."""
        lines = []
        for metric, series in self.series.items():
            lines.append(f"# TYPE {metric} unknown")
            for labels, points in series.items():
                lines += [f"{metric}{{{labels}}} {value!r} {ms // 1000}.{ms % 1000:03d}" for ms, value in sorted(points)]
        return "\n".join((*lines, "# EOF\n"))


def filled(directory: Path, samples: Samples) -> PrometheusServer:
    """A server that is not started yet."""
    data = directory / "data"
    data.mkdir(parents=True)
    (directory / "samples.txt").write_text(samples.exposition())
    promtool = shutil.which("promtool") or str(find_prometheus().with_name("promtool"))
    command = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(directory / "samples.txt"), str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return PrometheusServer(directory, {"nothing": []}, fresh=False, retention=timedelta(days=3650))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
