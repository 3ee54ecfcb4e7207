"""Networks of published measurements that no installed package provides, built after their papers and files.

Each is an ONNX graph without weight values: only shapes matter. ONNX's shape inference computes shapes of values.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from onnx import TensorProto, helper

Tensor = str
PLUGIN = "plugin"  # domain of operators that TensorRT does not have


class Net:
    """Builds a graph layer by layer. Tensors are names; `shapes` are their channels, height and width."""

    def __init__(self, size: tuple[int, int], activation: str, channels: int = 3) -> None:
        self.activation = activation
        self.shapes: dict[Tensor, tuple[int, int, int]] = {"images": (channels, *size)}
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, kind: str, inputs: Sequence[Tensor], shape: tuple[int, int, int], **attributes: Any) -> Tensor:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        self.shapes[name] = shape
        return name

    def constant(self, dims: Sequence[int], data_type: int = TensorProto.FLOAT, values: Sequence[float] = ()) -> Tensor:
        """Add a constant and return its name. Without values it has only a shape, as for weights."""
        name = f"constant{len(self.constants)}"
        tensor = TensorProto(name=name, data_type=data_type, dims=dims)
        if values:
            tensor = helper.make_tensor(name, data_type, dims, values)
        self.constants.append(tensor)
        return name

    def conv(
        self,
        x: Tensor,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        act: str | None = "",
        groups: int = 1,
        pad: int | None = None,
    ) -> Tensor:
        """Add a convolution and an activation. act: empty for the network's default, None for no activation."""
        inputs, height, width = self.shapes[x]
        pad = (kernel - 1) // 2 if pad is None else pad
        shape = (outputs, *((side + 2 * pad - kernel) // stride + 1 for side in (height, width)))
        weights = self.constant((outputs, inputs // groups, kernel, kernel))
        out = self.node(
            "Conv", (x, weights), shape, strides=[stride] * 2, pads=[pad] * 4, group=groups, kernel_shape=[kernel] * 2
        )
        return self.activate(out, self.activation if act == "" else act)

    def activate(self, x: Tensor, kind: str | None) -> Tensor:
        """Add an activation by name. Mish is a plugin that takes float32, as in tkDNN."""
        if kind is None:
            return x
        shape = self.shapes[x]
        if kind == "SiLU":
            return self.node("Mul", (x, self.node("Sigmoid", (x,), shape)), shape)
        return self.node(kind, (x,), shape, **({"domain": PLUGIN} if kind == "Mish" else {}))

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self.node("Add", (a, b), self.shapes[a])

    def concat(self, *parts: Tensor) -> Tensor:
        _, height, width = self.shapes[parts[0]]
        return self.node("Concat", parts, (sum(self.shapes[part][0] for part in parts), height, width), axis=1)

    def pool(self, x: Tensor, kernel: int, stride: int = 1) -> Tensor:
        """Add max pooling."""
        channels, height, width = self.shapes[x]
        pad = (kernel - 1) // 2
        shape = (channels, *((side + 2 * pad - kernel) // stride + 1 for side in (height, width)))
        return self.node("MaxPool", (x,), shape, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def upsample(self, x: Tensor) -> Tensor:
        """Add nearest-neighbour upsampling by 2."""
        channels, height, width = self.shapes[x]
        scales = self.constant((4,), values=(1, 1, 2, 2))
        return self.node("Resize", (x, "", scales), (channels, height * 2, width * 2), mode="nearest")

    def flat(self, x: Tensor, columns: int) -> Tensor:
        """Transpose [C, H, W] to [H, W, C] and reshape to [rows, columns]."""
        channels, height, width = self.shapes[x]
        moved = self.node("Transpose", (x,), (height, width, channels), perm=[0, 2, 3, 1])
        target = self.constant((3,), TensorProto.INT64, (1, channels * height * width // columns, columns))
        return self.node("Reshape", (moved, target), (channels * height * width // columns, columns, 1))

    def model(self, outputs: Sequence[Tensor]) -> Any:
        size = self.shapes["images"]
        given = helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, *size))
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        # Shape inference does not know plugins.
        stated = [
            helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, (1, *self.shapes[node.output[0]]))
            for node in self.nodes
            if node.domain == PLUGIN and node.output[0] not in outputs
        ]
        graph = helper.make_graph(self.nodes, "network", [given], made, self.constants, value_info=stated)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(PLUGIN, 1)]
        return helper.make_model(graph, opset_imports=opsets)


def resnet_stages(net: Net, x: Tensor, depths: Sequence[int], bottleneck: bool, groups: int = 1) -> list[Tensor]:
    """Add a ResNet's (He et al., arXiv 1512.03385) or ResNeXt-32x4d's (Xie et al., arXiv 1611.05431) stages."""
    stages = []
    for at, depth in enumerate(depths):
        width = 64 * 2**at
        for block in range(depth):
            stride = 2 if at and not block else 1
            if bottleneck:
                inner = width * 2 if groups > 1 else width
                y = net.conv(net.conv(x, inner), inner, 3, stride, groups=groups)
                y, outputs = net.conv(y, width * 4, act=None), width * 4
            else:
                y, outputs = net.conv(net.conv(x, width, 3, stride), width, 3, act=None), width
            if stride > 1 or net.shapes[x][0] != outputs:
                x = net.conv(x, outputs, 1, stride, act=None)
            x = net.activate(net.add(y, x), "Relu")
        stages.append(x)
    return stages


def resnet_features(net: Net, depths: Sequence[int], bottleneck: bool, groups: int = 1) -> list[Tensor]:
    """Add the stem and the stages of a ResNet. Return the outputs of the stages."""
    return resnet_stages(net, net.pool(net.conv("images", 64, 7, 2), 3, 2), depths, bottleneck, groups)


def resnet(size: int, depths: Sequence[int], bottleneck: bool) -> Any:
    """Return a ResNet v1.5 with its classifier, as in MLPerf Inference."""
    net = Net((size, size), "Relu")
    x = resnet_features(net, depths, bottleneck)[-1]
    x = net.node("GlobalAveragePool", (x,), (net.shapes[x][0], 1, 1))
    x = net.conv(x, 1000, act=None)
    return net.model([net.node("Softmax", (x,), net.shapes[x], axis=1)])


def resnet34_backbone(width: int) -> Any:
    """Return ResNet-34 without its classifier, for images of aspect ratio 5:3."""
    net = Net((width * 3 // 5, width), "Relu")
    return net.model(resnet_features(net, (3, 4, 6, 3), bottleneck=False)[-1:])


def ssd_outputs(net: Net, heads: Sequence[tuple[Tensor, Tensor]], classes: int) -> Any:
    """Concatenate boxes and class scores of all levels, add the plugin for decoding and NMS, and return the model."""
    boxes = net.node("Concat", [net.flat(box, 4) for box, _ in heads], (0, 0, 0), axis=1)
    scores = net.node("Concat", [net.flat(score, classes) for _, score in heads], (0, 0, 0), axis=1)
    return net.model([net.node("NMS", (boxes, net.activate(scores, "Sigmoid")), (0, 0, 0), domain=PLUGIN)])


def ssd_mobilenet(size: int) -> Any:
    """SSD with MobileNet v1 (Howard and others, arXiv 1704.04861) as in MLPerf Inference: COCO, 91 classes."""
    net = Net((size, size), "Clip")
    x = net.conv("images", 32, 3, 2)
    features = []
    plan = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
    for at, (outputs, stride) in enumerate(plan):
        channels = net.shapes[x][0]
        x = net.conv(net.conv(x, channels, 3, stride, groups=channels), outputs)
        features += [x] if at in (10, 12) else []
    for inner, outputs in ((256, 512), (128, 256), (128, 256), (64, 128)):
        x = net.conv(net.conv(x, inner), outputs, 3, 2)
        features.append(x)
    anchors = (3, 6, 6, 6, 6, 6)
    heads = [
        (net.conv(feature, 4 * count, act=None), net.conv(feature, 91 * count, act=None))
        for feature, count in zip(features, anchors, strict=True)
    ]
    return ssd_outputs(net, heads, 91)


def ssd_resnet34(size: int) -> Any:
    """SSD with ResNet-34 at stride 8 as in MLPerf Inference: COCO, 81 classes, 15,130 boxes at 1200 x 1200.

    The heads give feature maps with sides of 50, 25, 13, 7, 3 and 3, with a stride of 3 where possible.
    """
    net = Net((size, size), "Relu")
    x = net.pool(net.conv("images", 64, 7, 2), 3, 2)
    for width, depth, first in ((64, 3, 1), (128, 4, 2), (256, 6, 1)):
        for block in range(depth):
            stride = first if not block else 1
            y = net.conv(net.conv(x, width, 3, stride), width, 3, act=None)
            x = x if net.shapes[x][0] == width and stride == 1 else net.conv(x, width, 1, stride, act=None)
            x = net.activate(net.add(y, x), "Relu")
    features = [x]
    for inner, outputs, stride, pad in ((256, 512, 2, 1),) * 2 + ((128, 256, 2, 1), (128, 256, 2, 0), (128, 256, 1, 1)):
        x = net.conv(net.conv(x, inner), outputs, 3, stride, pad=pad)
        features.append(x)
    heads = [
        (net.conv(feature, 4 * count, 3, 3, act=None), net.conv(feature, 81 * count, 3, 3, act=None))
        for feature, count in zip(features, (4, 6, 6, 6, 4, 4), strict=True)
    ]
    return ssd_outputs(net, heads, 81)


def retinanet(size: int) -> Any:
    """RetinaNet (Lin and others, arXiv 1708.02002) with ResNeXt-50 32x4d as in MLPerf Inference: 264 classes."""
    net = Net((size, size), "Relu")
    _, c3, c4, c5 = resnet_features(net, (3, 4, 6, 3), bottleneck=True, groups=32)
    top = net.conv(c5, 256, act=None)
    levels = [top]
    for feature in (c4, c3):
        top = net.add(net.conv(feature, 256, act=None), net.upsample(top))
        levels.insert(0, top)
    levels = [net.conv(level, 256, 3, act=None) for level in levels]
    levels.append(net.conv(levels[-1], 256, 3, 2, act=None))
    levels.append(net.conv(net.activate(levels[-1], "Relu"), 256, 3, 2, act=None))
    heads = []
    for level in levels:
        box, score = level, level
        for _ in range(4):
            box, score = net.conv(box, 256, 3), net.conv(score, 256, 3)
        heads.append((net.conv(box, 4 * 9, 3, act=None), net.conv(score, 264 * 9, 3, act=None)))
    return ssd_outputs(net, heads, 264)


def yolov4(size: int) -> Any:
    """YOLOv4 (Bochkovskiy and others, arXiv 2004.10934): CSPDarknet-53 with Mish, SPP, PAN; COCO, 80 classes."""
    net = Net((size, size), "Mish")
    x = net.conv("images", 32, 3)
    stages = []
    for depth, width in ((1, 64), (2, 128), (8, 256), (8, 512), (4, 1024)):
        x = net.conv(x, width, 3, 2)
        half = width if depth == 1 else width // 2  # the first stage keeps its width
        beside, y = net.conv(x, half), net.conv(x, half)
        for _ in range(depth):
            y = net.add(y, net.conv(net.conv(y, width // 2), half, 3))
        x = net.conv(net.concat(net.conv(y, half), beside), width)
        stages.append(x)
    net.activation = "LeakyRelu"
    *_, c3, c4, c5 = stages

    def thrice(x: Tensor, width: int) -> Tensor:
        return net.conv(net.conv(net.conv(x, width), width * 2, 3), width)

    x = thrice(c5, 512)
    p5 = thrice(net.concat(net.pool(x, 13), net.pool(x, 9), net.pool(x, 5), x), 512)
    x = thrice(net.concat(net.conv(c4, 256), net.upsample(net.conv(p5, 256))), 256)
    p4 = net.conv(net.conv(x, 512, 3), 256)
    x = thrice(net.concat(net.conv(c3, 128), net.upsample(net.conv(p4, 128))), 128)
    p3 = net.conv(net.conv(x, 256, 3), 128)
    outputs = [net.conv(net.conv(p3, 256, 3), 255, act=None)]
    for below, skip, width in ((p3, p4, 256), (None, p5, 512)):
        x = thrice(net.concat(net.conv(below or x, width, 3, 2), skip), width)
        x = net.conv(net.conv(x, width * 2, 3), width)
        outputs.append(net.conv(net.conv(x, width * 2, 3), 255, act=None))
    return net.model([net.node("Yolo", (x,), (0, 0, 0), domain=PLUGIN) for x in outputs])


def yolov7(size: int) -> Any:
    """YOLOv7 (Wang and others, arXiv 2207.02696), as it is deployed: COCO, 80 classes, boxes decoded."""
    net = Net((size, size), "SiLU")

    def elan(x: Tensor, inner: int, outputs: int) -> Tensor:
        first, second = net.conv(x, inner), net.conv(x, inner)
        middle = net.conv(net.conv(second, inner, 3), inner, 3)
        last = net.conv(net.conv(middle, inner, 3), inner, 3)
        return net.conv(net.concat(last, middle, second, first), outputs)

    def wide(x: Tensor, outputs: int) -> Tensor:
        parts = [net.conv(x, outputs), net.conv(x, outputs)]
        for _ in range(4):
            parts.append(net.conv(parts[-1], outputs // 2, 3))
        return net.conv(net.concat(*reversed(parts)), outputs)

    def down(x: Tensor, outputs: int, *others: Tensor) -> Tensor:
        pooled = net.conv(net.pool(x, 2, 2), outputs)
        return net.concat(net.conv(net.conv(x, outputs), outputs, 3, 2), pooled, *others)

    x = net.conv(net.conv(net.conv("images", 32, 3), 64, 3, 2), 64, 3)
    x = elan(net.conv(x, 128, 3, 2), 64, 256)
    c3 = elan(down(x, 128), 128, 512)
    c4 = elan(down(c3, 256), 256, 1024)
    x = elan(down(c4, 512), 256, 1024)
    spp = net.conv(net.conv(net.conv(x, 512), 512, 3), 512)
    y = net.concat(spp, *(net.pool(spp, kernel) for kernel in (5, 9, 13)))
    y = net.conv(net.conv(y, 512), 512, 3)
    p5 = net.conv(net.concat(y, net.conv(x, 512)), 512)
    p4 = wide(net.concat(net.conv(c4, 256), net.upsample(net.conv(p5, 256))), 256)
    p3 = wide(net.concat(net.conv(c3, 128), net.upsample(net.conv(p4, 128))), 128)
    n4 = wide(down(p3, 128, p4), 256)
    n5 = wide(down(n4, 256, p5), 512)
    heads = [net.conv(net.conv(x, width, 3), 255, act=None) for x, width in ((p3, 256), (n4, 512), (n5, 1024))]
    decoded = [net.activate(net.flat(head, 85), "Sigmoid") for head in heads]
    return net.model([net.node("Concat", decoded, (0, 0, 0), axis=1)])


def csp(net: Net, x: Tensor, outputs: int, depth: int, shortcut: bool = True) -> Tensor:
    """Add a cross-stage partial block with three convolutions of its own (C3)."""
    half = outputs // 2
    y, beside = net.conv(x, half), net.conv(x, half)
    for _ in range(depth):
        inner = net.conv(net.conv(y, half), half, 3)
        y = net.add(inner, y) if shortcut else inner
    return net.conv(net.concat(y, beside), outputs)


def pan(net: Net, features: Sequence[Tensor], depth: int) -> list[Tensor]:
    """Add the neck of YOLOv5 and YOLOX: top-down, then bottom-up. Return its feature maps."""
    c3, c4, c5 = features
    widths = [net.shapes[feature][0] for feature in features]
    top5 = net.conv(c5, widths[1])
    x = csp(net, net.concat(net.upsample(top5), c4), widths[1], depth, shortcut=False)
    top4 = net.conv(x, widths[0])
    p3 = csp(net, net.concat(net.upsample(top4), c3), widths[0], depth, shortcut=False)
    p4 = csp(net, net.concat(net.conv(p3, widths[0], 3, 2), top4), widths[1], depth, shortcut=False)
    p5 = csp(net, net.concat(net.conv(p4, widths[1], 3, 2), top5), widths[2], depth, shortcut=False)
    return [p3, p4, p5]


def yolov5s(size: int) -> Any:
    """YOLOv5s, release 6, with its anchors: COCO, 80 classes, raw outputs."""
    net = Net((size, size), "SiLU")
    x = net.conv("images", 32, 6, 2)
    features = []
    for width, depth in ((64, 1), (128, 2), (256, 3), (512, 1)):
        x = csp(net, net.conv(x, width, 3, 2), width, depth)
        features.append(x)
    x = net.conv(x, 256)
    pools = [x]
    for _ in range(3):
        pools.append(net.pool(pools[-1], 5))
    features[-1] = net.conv(net.concat(*pools), 512)
    return net.model([net.conv(x, 255, act=None) for x in pan(net, features[1:], 1)])


def yolox(size: int, depth: int, width: int, classes: int = 80, activation: str = "SiLU") -> Any:
    """YOLOX (Ge and others, arXiv 2107.08430) with raw outputs. depth: Relative to YOLOX-s; width: Stem channels."""
    net = Net((size, size), activation)
    # Focus layer: every second pixel of every second row, at four offsets.
    focus = net.node("SpaceToDepth", ("images",), (12, size // 2, size // 2), blocksize=2)
    x = net.conv(focus, width, 3)
    features = []
    for times, blocks in ((2, depth), (4, 3 * depth), (8, 3 * depth)):
        x = csp(net, net.conv(x, times * width, 3, 2), times * width, blocks)
        features.append(x)
    x = net.conv(net.conv(x, 16 * width, 3, 2), 8 * width)
    x = net.conv(net.concat(x, *(net.pool(x, kernel) for kernel in (5, 9, 13))), 16 * width)
    features.append(csp(net, x, 16 * width, depth, shortcut=False))
    outputs, inner = [], 4 * width
    for level in pan(net, features[1:], depth):
        x = net.conv(level, inner)
        score = net.conv(net.conv(net.conv(x, inner, 3), inner, 3), classes, act=None)
        box = net.conv(net.conv(x, inner, 3), inner, 3)
        parts = (net.conv(box, 4, act=None), net.conv(box, 1, act="Sigmoid"), net.activate(score, "Sigmoid"))
        outputs.append(net.concat(*parts))
    return net.model(outputs)


NETWORKS: dict[str, Callable[[int], Any]] = {
    "resnet18": partial(resnet, depths=(2, 2, 2, 2), bottleneck=False),
    "resnet34": partial(resnet, depths=(3, 4, 6, 3), bottleneck=False),
    "resnet50": partial(resnet, depths=(3, 4, 6, 3), bottleneck=True),
    "resnet34-backbone": resnet34_backbone,
    "ssd-mobilenet": ssd_mobilenet,
    "ssd-resnet34": ssd_resnet34,
    "retinanet": retinanet,
    "yolov4": yolov4,
    "yolov7": yolov7,
    "yolov5s": yolov5s,
    "yolox-s-leaky": partial(yolox, depth=1, width=32, activation="LeakyRelu"),
    "yolox-s-4": partial(yolox, depth=1, width=32, classes=4),
    "yolox-m-4": partial(yolox, depth=2, width=48, classes=4),
    "yolox-l-4": partial(yolox, depth=3, width=64, classes=4),
}
"""Functions that build a graph for an input of this side (or width) in pixels, by the name in the measurements."""
