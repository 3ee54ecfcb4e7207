// Reads the floats of an output from stdin, and prints what the parser makes of them: width height classes d0 d1 [d2].
#include <cstdio>
#include <cstdlib>
#include "nvdsinfer_custom_impl.h"

extern "C" bool NvDsInferParseEdgekd(std::vector<NvDsInferLayerInfo> const&, NvDsInferNetworkInfo const&,
                                     NvDsInferParseDetectionParams const&, std::vector<NvDsInferObjectDetectionInfo>&);

int main(int count, char** given) {
    NvDsInferNetworkInfo network{(unsigned)atoi(given[1]), (unsigned)atoi(given[2]), 3};
    unsigned classes = atoi(given[3]);
    NvDsInferLayerInfo layer{};
    layer.inferDims.numDims = count - 4;
    unsigned total = 1;
    for (int at = 4; at < count; ++at) total *= layer.inferDims.d[at - 4] = atoi(given[at]);
    std::vector<float> values(total);
    if (fread(values.data(), 4, total, stdin) != total) return 2;
    layer.buffer = values.data();
    NvDsInferParseDetectionParams params{classes, std::vector<float>(classes, 0.25f)};
    std::vector<NvDsInferObjectDetectionInfo> found;
    if (!NvDsInferParseEdgekd({layer}, network, params, found)) return 3;
    for (auto const& each : found)
        printf("%.9g %.9g %.9g %.9g %.9g %u\n", each.left, each.top, each.left + each.width, each.top + each.height,
               each.detectionConfidence, each.classId);
}
