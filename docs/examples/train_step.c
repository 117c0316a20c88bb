/* Trains with a step graph that `offshoot tune MODEL --data D --emit-step STEP.onnx` wrote. Needs ONNX Runtime's C library.
 *
 *     cc -O2 -I INCLUDE train_step.c -o train_step -L LIB -Wl,-rpath,LIB -lonnxruntime -lm
 *     ./train_step STEP.onnx [STEPS] [LEARNING_RATE]
 *
 * INCLUDE holds onnxruntime_c_api.h. STEP.safetensors, the weights before the first step, stands beside STEP.onnx. The images and
 * labels are made up: one batch of pseudo-random numbers. Prints a JSON line a step with the loss before the update.
 *
 * Every input NAME that has an output `next/NAME` is state. There are two sets of it: a step reads one and writes the other. */
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onnxruntime_c_api.h"

enum { MAX_RANK = 8 };
static const double BETA1 = 0.9, BETA2 = 0.999; /* what `--emit-step` takes without `--betas` */

static const OrtApi *ort;
static OrtAllocator *allocator;

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static void check(OrtStatus *status) {
    if (status) die("ONNX Runtime: %s", ort->GetErrorMessage(status));
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) die("out of memory");
    return memory;
}

/* An input or output of the graph. */
typedef struct {
    char *name;
    size_t rank, count;
    int64_t shape[MAX_RANK];
} Port;

static Port describe(const OrtSession *session, int output, size_t index) {
    Port port = {0};
    OrtTypeInfo *info;
    const OrtTensorTypeAndShapeInfo *tensor;
    ONNXTensorElementDataType type;
    check(output ? ort->SessionGetOutputName(session, index, allocator, &port.name)
                 : ort->SessionGetInputName(session, index, allocator, &port.name));
    check(output ? ort->SessionGetOutputTypeInfo(session, index, &info) : ort->SessionGetInputTypeInfo(session, index, &info));
    check(ort->CastTypeInfoToTensorInfo(info, &tensor));
    if (!tensor) die("%s is no tensor", port.name);
    check(ort->GetTensorElementType(tensor, &type));
    check(ort->GetDimensionsCount(tensor, &port.rank));
    if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || port.rank > MAX_RANK)
        die("%s: a step graph has float32 tensors of at most %d axes", port.name, MAX_RANK);
    check(ort->GetDimensions(tensor, port.shape, port.rank));
    port.count = 1;
    for (size_t i = 0; i < port.rank; i++) {
        if (port.shape[i] < 0) die("%s: axis %zu has no fixed size", port.name, i);
        port.count *= (size_t)port.shape[i];
    }
    ort->ReleaseTypeInfo(info);
    return port;
}

/* A value of the runtime that lies in our memory. */
static OrtValue *value_in(const OrtMemoryInfo *memory, const Port *port, float *data) {
    OrtValue *value;
    check(ort->CreateTensorWithDataAsOrtValue(memory, data, port->count * sizeof(float), port->shape, port->rank,
                                              ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value));
    return value;
}

/* A safetensors file: the length of its header (8 bytes, little endian), the header (JSON, ended by a 0 here), then the values. */
typedef struct {
    char *header;
    unsigned char *values;
    size_t length; /* bytes of values */
} Safetensors;

static Safetensors read_safetensors(const char *path) {
    Safetensors s = {0};
    unsigned char prefix[8];
    uint64_t header = 0;
    FILE *file = fopen(path, "rb");
    if (!file) die("%s: cannot be opened", path);
    if (fseek(file, 0, SEEK_END) != 0) die("%s: cannot be read", path);
    long size = ftell(file);
    rewind(file);
    if (size < 8 || fread(prefix, 1, 8, file) != 8) die("%s: no safetensors file", path);
    for (int i = 7; i >= 0; i--) header = header << 8 | prefix[i];
    if (header > (uint64_t)size - 8) die("%s: no safetensors file", path);
    s.length = (size_t)size - 8 - (size_t)header;
    s.header = allocate((size_t)header + 1, 1);
    s.values = allocate(s.length, 1);
    if (fread(s.header, 1, (size_t)header, file) != header || fread(s.values, 1, s.length, file) != s.length)
        die("%s: cannot be read", path);
    fclose(file);
    return s;
}

/* Copies a tensor. The header is scanned and not parsed: Offshoot writes it without white space, as "NAME":{...}. */
static void load(const Safetensors *s, const Port *port, float *to) {
    size_t room = strlen(port->name) + 5, bytes = port->count * sizeof(float), begin, end;
    char *key = allocate(room, 1);
    snprintf(key, room, "\"%s\":{", port->name);
    const char *entry = strstr(s->header, key);
    free(key);
    const char *close = entry ? strchr(entry, '}') : NULL;
    const char *offsets = entry ? strstr(entry, "\"data_offsets\":[") : NULL;
    if (!close || !offsets || offsets > close) die("%s has no initial value in the safetensors file", port->name);
    if (sscanf(offsets, "\"data_offsets\":[%zu,%zu]", &begin, &end) != 2 || begin > end || end > s->length ||
        end - begin != bytes)
        die("%s: the safetensors file holds a tensor of another size", port->name);
    memcpy(to, s->values + begin, bytes);
}

static int starts_with(const char *text, const char *start) { return strncmp(text, start, strlen(start)) == 0; }

/* A linear congruential generator; train_step.py --pseudo-random has the same one. */
static uint32_t draw(void) {
    static uint32_t state = 1;
    state = 1664525u * state + 1013904223u;
    return state >> 8;
}

int main(int argc, char **argv) {
    if (argc < 2 || strlen(argv[1]) < 5) die("usage: %s STEP.onnx [STEPS] [LEARNING_RATE]", argv[0]);
    const long steps = argc > 2 ? atol(argv[2]) : 20;
    const double rate = argc > 3 ? atof(argv[3]) : 5e-4;

    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!ort) die("the library of ONNX Runtime is older than its header");
    OrtEnv *env;
    OrtSessionOptions *options;
    OrtSession *session;
    OrtMemoryInfo *memory;
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "train_step", &env));
    check(ort->CreateSessionOptions(&options));
    check(ort->CreateSession(env, argv[1], options, &session));
    check(ort->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
    check(ort->GetAllocatorWithDefaultOptions(&allocator));

    char *path = allocate(strlen(argv[1]) + 16, 1);
    snprintf(path, strlen(argv[1]) + 16, "%.*s.safetensors", (int)strlen(argv[1]) - 5, argv[1]); /* without .onnx */
    Safetensors initial = read_safetensors(path);

    size_t inputs, outputs;
    check(ort->SessionGetInputCount(session, &inputs));
    check(ort->SessionGetOutputCount(session, &outputs));
    Port *in = allocate(inputs, sizeof *in), *out = allocate(outputs, sizeof *out);
    const char **in_names = allocate(inputs, sizeof *in_names), **out_names = allocate(outputs, sizeof *out_names);
    for (size_t i = 0; i < inputs; i++) in[i] = describe(session, 0, i), in_names[i] = in[i].name;
    for (size_t o = 0; o < outputs; o++) out[o] = describe(session, 1, o), out_names[o] = out[o].name;

    /* Values of both turns. What is no state lies in the same memory in both. */
    OrtValue **in_values[2], **out_values[2];
    for (int turn = 0; turn < 2; turn++) {
        in_values[turn] = allocate(inputs, sizeof(OrtValue *));
        out_values[turn] = allocate(outputs, sizeof(OrtValue *));
    }
    float *images = NULL, *targets = NULL, *learning_rate = NULL, *correction1 = NULL, *correction2 = NULL, *loss = NULL;
    size_t pixels = 0, batch = 0, classes = 0;
    for (size_t i = 0; i < inputs; i++) {
        float *data[2] = {allocate(in[i].count, sizeof(float)), NULL};
        data[1] = data[0];
        size_t o = 0;
        while (o < outputs && !(starts_with(out[o].name, "next/") && strcmp(out[o].name + 5, in[i].name) == 0)) o++;
        if (o < outputs) {
            data[1] = allocate(in[i].count, sizeof(float));
            for (int turn = 0; turn < 2; turn++) out_values[turn][o] = value_in(memory, &out[o], data[1 - turn]);
            /* The moments of AdamW start at zero, everything else with a value of the file. */
            if (!starts_with(in[i].name, "first_moment/") && !starts_with(in[i].name, "second_moment/"))
                load(&initial, &in[i], data[0]);
        } else if (strcmp(in[i].name, "learning_rate") == 0) {
            learning_rate = data[0];
        } else if (strcmp(in[i].name, "first_moment_correction") == 0) {
            correction1 = data[0];
        } else if (strcmp(in[i].name, "second_moment_correction") == 0) {
            correction2 = data[0];
        } else if (strcmp(in[i].name, "targets") == 0 && in[i].rank == 2) {
            targets = data[0], batch = (size_t)in[i].shape[0], classes = (size_t)in[i].shape[1];
        } else if (!images) {
            images = data[0], pixels = in[i].count;
        } else {
            die("this example does not know what to feed %s with", in[i].name);
        }
        for (int turn = 0; turn < 2; turn++) in_values[turn][i] = value_in(memory, &in[i], data[turn]);
    }
    for (size_t o = 0; o < outputs; o++) {
        if (out_values[0][o]) continue;
        float *data = allocate(out[o].count, sizeof(float));
        if (strcmp(out[o].name, "loss") == 0) loss = data;
        for (int turn = 0; turn < 2; turn++) out_values[turn][o] = value_in(memory, &out[o], data);
    }
    if (!images || !targets || !classes || !learning_rate || !correction1 || !correction2 || !loss)
        die("%s: this example trains classifiers with AdamW", argv[1]);

    for (size_t i = 0; i < pixels; i++) images[i] = (float)(draw() / 8388608.0 - 1.0);
    for (size_t i = 0; i < batch; i++) targets[i * classes + draw() % classes] = 1.0f;

    for (long step = 1; step <= steps; step++) {
        const int turn = (int)((step - 1) % 2);
        *learning_rate = (float)rate;
        *correction1 = (float)(1.0 / (1.0 - pow(BETA1, (double)step)));
        *correction2 = (float)(1.0 / sqrt(1.0 - pow(BETA2, (double)step)));
        check(ort->Run(session, NULL, in_names, (const OrtValue *const *)in_values[turn], inputs, out_names, outputs,
                       out_values[turn]));
        printf("{\"step\": %ld, \"loss\": %.9g}\n", step, (double)*loss);
        fflush(stdout);
    }
    /* The trained weights lie in the memory of in_values[steps % 2]. The process gives everything back as it ends, but the session
     * owns threads. */
    ort->ReleaseSession(session);
    ort->ReleaseSessionOptions(options);
    ort->ReleaseMemoryInfo(memory);
    ort->ReleaseEnv(env);
    return 0;
}
