// What the parser needs of DeepStream's own header, by the names and types in its documentation.
#pragma once
#include <vector>

struct NvDsInferDims {
    unsigned int numDims;
    unsigned int d[8];
    unsigned int numElements;
};
struct NvDsInferLayerInfo {
    int dataType;
    NvDsInferDims inferDims;
    int bindingIndex;
    const char* layerName;
    void* buffer;
    int isInput;
};
struct NvDsInferNetworkInfo {
    unsigned int width, height, channels;
};
struct NvDsInferParseDetectionParams {
    unsigned int numClassesConfigured;
    std::vector<float> perClassPreclusterThreshold;
};
struct NvDsInferObjectDetectionInfo {
    unsigned int classId;
    float left, top, width, height;
    float detectionConfidence;
};
typedef bool (*NvDsInferParseCustomFunc)(std::vector<NvDsInferLayerInfo> const&, NvDsInferNetworkInfo const&,
                                         NvDsInferParseDetectionParams const&,
                                         std::vector<NvDsInferObjectDetectionInfo>&);
#define CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(func) \
    __attribute__((unused)) static NvDsInferParseCustomFunc check_##func() { return func; }
