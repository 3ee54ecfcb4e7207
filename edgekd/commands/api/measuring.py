"""What says how good and how fast something is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.commands.api.arguments import path_or_none, target_of, target_or_none
from edgekd.commands.api.results import Analysed, Scored
from edgekd.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgekd.commands.bench import Measured
    from edgekd.hardware.predict.result import Predicted
    from edgekd.hardware.target import Target


def score_model(
    artifact: str | Path,
    data: str | Path,
    *,
    split: str = "val",
    tail: float | None = None,
    head: str | None = None,
    trust_checkpoint: bool = False,
    progress: Progress = SILENT,
) -> Scored:
    """Score an artifact on a labelled split, as it ships: preprocessing, network, decoding and NMS.

    artifact: a `.pt`, `.onnx`, `.packed`, bundle, or the folder of a conversion. tail: also score the classes with less
    than this share of the training objects, 0 to 1. Scores are COCO's, 0 to 1.

    Raises SpecError, DataError where classes differ or too many images are unreadable, DeviceError where the graph
    cannot run, BundleError. The command: `edgekd eval`. The arithmetic is faster-coco-eval's; how it differs from
    Ultralytics' is measured in bench/results/scorer_agreement.md.
    """
    from edgekd.data.dataset import load_dataset
    from edgekd.data.long_tail import rare_classes
    from edgekd.deploy.artifact import runnable
    from edgekd.evaluation.coco import tail_score
    from edgekd.evaluation.evaluate import evaluate, require_classes

    began = time.perf_counter()
    dataset = load_dataset(Path(data))
    rare = () if tail is None else rare_classes(dataset.split("train"), dataset.classes, tail)
    with runnable(Path(artifact), head, dataset.classes, trust_checkpoint) as (graph, spec, engine):
        require_classes(spec, dataset)
        found = evaluate(graph, spec, dataset.split(split), progress, engine=engine)
    tails = None if tail is None else tail_score(found.score.per_class, rare, tail)
    document = {**found.score.to_json(), "tail": tails, "seconds": time.perf_counter() - began}
    document["skipped"] = [str(image) for image, _ in found.skipped]
    return Scored(document, found.score, found.skipped)


def bench(
    artifact: str | Path,
    *,
    device: str = "local",
    against: str | Path | None = None,
    frames: str | Path | None = None,
    iterations: int = 200,
    seconds: float = 5.0,
    streams: int = 2,
    minutes: float = 0.0,
    target: str | Path | Target | None = None,
    electricity_price: float | None = None,
    instance_price: float | None = None,
    currency: str | None = None,
    csv: str | Path | None = None,
    report: str | Path | None = None,
    head: str | None = None,
    trust_checkpoint: bool = False,
    progress: Progress = SILENT,
) -> Measured:
    """Time an artifact here, engine alone and from camera to detections: percentiles, throughput, energy, cost.

    device: `local` or `local:ENGINE`. against: another artifact, measured in turns with it. frames: a folder of images
    or a video to decode; without it noise of the input's size. Each part takes at least `iterations` frames and
    `seconds`. streams: at once, for throughput, 0 for none. minutes: of a sustained run, 0 for none. target: what this
    machine is, or stands in for. Prices: of a kWh, and of this machine for an hour. csv, report: files to write every
    sample and a page with charts to. Times are milliseconds, energies millijoules a frame.

    A rate that a run was too short or too noisy for is None, with the reason in `refused`. Raises SpecError, DataError
    or DeviceError. The command: `edgekd bench`. The protocol, with its sources: docs/measuring.md.
    """
    from edgekd.builds.stages.base import local_device
    from edgekd.commands import bench as bench_module
    from edgekd.evaluation.cost import Prices
    from edgekd.evaluation.report.bench_files import require_place, write_csv, write_page

    table, page = path_or_none(csv), path_or_none(report)
    require_place(table, page)
    job = bench_module.BenchJob(
        artifact=Path(artifact),
        device=local_device(device),
        against=path_or_none(against),
        frames=path_or_none(frames),
        iterations=iterations,
        seconds=seconds,
        streams=streams,
        minutes=minutes,
        target=target_or_none(target),
        prices=Prices(electricity_price, instance_price, currency),
        head=head,
        trust_checkpoint=trust_checkpoint,
    )
    found = bench_module.run(job, progress)
    if table:
        write_csv(table, found)
    if page:
        write_page(page, job.artifact, found)
    return found


def predict_latency(
    model: str | Path,
    *,
    target: str | Path | Target = "xavier",
    precision: str | None = None,
    table: str | Path | None = None,
    report: str | Path | None = None,
    head: str | None = None,
    trust_checkpoint: bool = False,
) -> Predicted:
    """Predict latency and energy of a model on a target that is not at hand, and say how sure that is.

    model: a `.pt`, `.onnx`, `.packed` or bundle. precision: `fp32`, `fp16` or `int8`; by default the graph's own.
    table: a `.toml` of times measured on the target itself, which correct the prediction. report: a page with the
    roofline to write. Milliseconds and millijoules are of one frame; nine of ten measurements should lie in the
    interval. Nothing here is a measurement.

    Raises SpecError, also where the target has no figures for it, and BundleError. The command: `edgekd predict`. The
    model, and the published measurements that it is fitted to: docs/prediction.md.
    """
    from edgekd.commands import predict
    from edgekd.evaluation.report.bench_files import require_place, write_prediction

    page = path_or_none(report)
    require_place(page)
    where, measured = target_of(target), path_or_none(table)
    found = predict.predict(predict.PredictJob(Path(model), where, precision, measured, head, trust_checkpoint))
    if page:
        write_prediction(page, found)
    return found


def analyse(
    run: str | Path,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    images: int = 8,
    progress: Progress = SILENT,
) -> Analysed:
    """Why and where a finished build lost accuracy: objects lost and gained, confusion, layers, attention; as a page.

    run: the result folder. data: what was scored, where it is no longer where it was. out: the page, by default
    `analysis.html` in there. images: how many scored images layers are compared on.

    Raises SpecError where no build was finished there, or its stages are gone; DataError where `data` is not what was
    scored; BundleError. The command: `edgekd report`. Similarity is linear CKA (Kornblith et al., ICML 2019), attention
    that of Zagoruyko and Komodakis (ICLR 2017): docs/report.md.
    """
    from edgekd.commands import report as report_module
    from edgekd.evaluation.report.bench_files import require_place

    place = path_or_none(out)
    require_place(place)
    return Analysed(report_module.run(report_module.ReportJob(Path(run), path_or_none(data), place, images), progress))
