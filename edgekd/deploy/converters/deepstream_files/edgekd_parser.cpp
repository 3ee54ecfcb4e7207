// Parses the network's output for DeepStream: boxes with class and confidence, in pixels of the network's input.
// nvinfer calls NvDsInferParseEdgekd for each frame, clusters the boxes as configured, and maps them to the frame. The
// kind of output is in edgekd_head.h. It needs C++11 and nvdsinfer_custom_impl.h.

#include <algorithm>
#include <cmath>
#include <vector>

#include "edgekd_head.h"
#include "nvdsinfer_custom_impl.h"

namespace {

using Objects = std::vector<NvDsInferObjectDetectionInfo>;

struct Best {
    unsigned int label;
    float score;
};

// The best of the classes, whose scores lie `step` apart.
Best best_of(const float* scores, unsigned int classes, unsigned int step) {
    Best best{0, scores[0]};
    for (unsigned int label = 1; label < classes; ++label) {
        const float score = scores[label * step];
        if (score > best.score) best = Best{label, score};
    }
    return best;
}

class Found {
  public:
    Found(NvDsInferNetworkInfo const& network, NvDsInferParseDetectionParams const& params, Objects& objects)
        : width_(static_cast<float>(network.width)),
          height_(static_cast<float>(network.height)),
          least_(params.perClassPreclusterThreshold),
          objects_(objects) {}

    unsigned int width() const { return static_cast<unsigned int>(width_); }
    unsigned int height() const { return static_cast<unsigned int>(height_); }

    // A box by its corners, kept where it is sure enough, finite, and partly inside.
    void add(Best best, float x1, float y1, float x2, float y2) {
        if (best.label >= least_.size() || !(best.score > least_[best.label])) return;
        if (!std::isfinite(x1) || !std::isfinite(y1) || !std::isfinite(x2) || !std::isfinite(y2)) return;
        x1 = std::max(x1, 0.0f);
        y1 = std::max(y1, 0.0f);
        x2 = std::min(x2, width_);
        y2 = std::min(y2, height_);
        if (x2 <= x1 || y2 <= y1) return;
        NvDsInferObjectDetectionInfo object{};
        object.classId = best.label;
        object.left = x1;
        object.top = y1;
        object.width = x2 - x1;
        object.height = y2 - y1;
        object.detectionConfidence = best.score;
        objects_.push_back(object);
    }

    void add_centred(Best best, float cx, float cy, float w, float h) {
        add(best, cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2);
    }

  private:
    float width_, height_;
    std::vector<float> const& least_;
    Objects& objects_;
};

// [4 + classes, n]: cx, cy, w, h in pixels, then a probability for each class.
inline bool parse_yolo(const float* out, unsigned int rows, unsigned int n, Found& found) {
    if (rows != 4 + EDGEKD_CLASSES) return false;
    for (unsigned int at = 0; at < n; ++at) {
        const float* box = out + at;
        found.add_centred(best_of(box + 4 * n, EDGEKD_CLASSES, n), box[0], box[n], box[2 * n], box[3 * n]);
    }
    return true;
}

// [n, 5 + classes]: cx, cy, log w, log h in cells of a grid, objectness, and a probability for each class.
inline bool parse_yolox(const float* out, unsigned int n, unsigned int columns, Found& found) {
    if (columns != 5 + EDGEKD_CLASSES) return false;
    const unsigned int strides[] = EDGEKD_STRIDES;
    unsigned int row = 0;
    for (const unsigned int stride : strides) {
        for (unsigned int y = 0; y < found.height() / stride; ++y) {
            for (unsigned int x = 0; x < found.width() / stride; ++x, ++row) {
                if (row >= n) return false;
                const float* cell = out + row * columns;
                Best best = best_of(cell + 5, EDGEKD_CLASSES, 1);
                best.score *= cell[4];
                found.add_centred(best, (cell[0] + x) * stride, (cell[1] + y) * stride, std::exp(cell[2]) * stride,
                                  std::exp(cell[3]) * stride);
            }
        }
    }
    return row == n;
}

// [n, 6]: x1, y1, x2, y2 in pixels, score, class.
inline bool parse_end2end(const float* out, unsigned int n, unsigned int columns, Found& found) {
    if (columns != 6) return false;
    for (unsigned int at = 0; at < n; ++at) {
        const float* row = out + at * columns;
        if (row[5] < 0) continue;
        found.add(Best{static_cast<unsigned int>(row[5]), row[4]}, row[0], row[1], row[2], row[3]);
    }
    return true;
}

}  // namespace

extern "C" bool NvDsInferParseEdgekd(std::vector<NvDsInferLayerInfo> const& layers, NvDsInferNetworkInfo const& network,
                                     NvDsInferParseDetectionParams const& params, Objects& objects) {
    if (layers.size() != 1 || layers[0].buffer == nullptr) return false;
    const NvDsInferDims& dims = layers[0].inferDims;
    // With or without the batch, which is one.
    if (dims.numDims < 2 || (dims.numDims == 3 && dims.d[0] != 1) || dims.numDims > 3) return false;
    const unsigned int first = dims.d[dims.numDims - 2], second = dims.d[dims.numDims - 1];
    const float* out = static_cast<const float*>(layers[0].buffer);
    Found found(network, params, objects);
    return EDGEKD_PARSE(out, first, second, found);
}

CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(NvDsInferParseEdgekd);
