/* Makes images with an exported SavedModel, of latents or of noise, through TensorFlow's C API.
 *
 * Everything above the line "The command" is for an app of your own: decoder_open, decoder_condition, decoder_decode,
 * decoder_generate, decoder_sample and decoder_close. README.md shows how. It is C11 and compiles as C++17 too. */

#define _POSIX_C_SOURCE 200809L

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <tensorflow/c/c_api.h>

/* ================================================================ Errors */

enum { OTHER_ERROR = 1, INPUT_ERROR = 2 };

typedef struct {
    int status;        /* INPUT_ERROR: wrong use or bad input; OTHER_ERROR: anything else */
    char message[512]; /* one line */
} Failure;

/* Fills in a failure, its message in one line, and returns false. */
__attribute__((format(printf, 3, 4)))
static bool fail(Failure *failure, int status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(failure->message, sizeof failure->message, format, arguments);
    va_end(arguments);
    for (char *at = failure->message; *at != '\0'; at++)
        if ((unsigned char)*at < ' ' || *at == 0x7f)
            *at = ' ';
    failure->status = status;
    return false;
}

/* ================================================================ MetaGraphDef
 *
 * The signatures' tensors, read from the protocol buffer that TensorFlow returns with a session. Reading stays
 * within the bytes whatever they are; what comes after damage is taken for missing. */

enum { /* field numbers of meta_graph.proto, of the map entries in it, and of tensor_shape.proto */
    META_GRAPH_SIGNATURES = 5,
    SIGNATURE_INPUTS = 1,
    SIGNATURE_OUTPUTS = 2,
    MAP_KEY = 1,
    MAP_VALUE = 2,
    TENSOR_NAME = 1,
    TENSOR_DTYPE = 2,
    TENSOR_SHAPE = 3,
    SHAPE_DIM = 2,
    SHAPE_UNKNOWN_RANK = 3,
    DIM_SIZE = 1
};

enum { UNKNOWN_RANK = -1, MAX_RANK = 4 };

typedef struct {
    const unsigned char *at, *end;
} Bytes;

typedef struct {
    uint64_t number;
    uint64_t value; /* of a number, else 0 */
    Bytes bytes;    /* of a string or message, else empty */
} Field;

typedef struct {
    Bytes name; /* of the tensor in the graph: OPERATION:OUTPUT */
    uint64_t dtype;
    int rank; /* the dimensions beyond MAX_RANK are counted, not kept */
    int64_t dims[MAX_RANK];
} TensorInfo;

static bool read_varint(Bytes *from, uint64_t *value)
{
    *value = 0;
    for (int shift = 0; shift < 64 && from->at < from->end; shift += 7) {
        const unsigned char byte = *from->at++;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return true;
    }
    return false;
}

/* Reads a message's next field; false at its end and at damage. */
static bool next_field(Bytes *message, Field *field)
{
    uint64_t tag, length;
    if (!read_varint(message, &tag))
        return false;
    field->number = tag >> 3;
    field->value = 0;
    field->bytes.at = field->bytes.end = message->at;
    switch (tag & 7) {
    case 0:
        return read_varint(message, &field->value);
    case 1:
        length = 8;
        break;
    case 2:
        if (!read_varint(message, &length))
            return false;
        break;
    case 5:
        length = 4;
        break;
    default:
        return false;
    }
    if (length > (uint64_t)(message->end - message->at))
        return false;
    field->bytes.at = message->at;
    field->bytes.end = message->at += length;
    return true;
}

static int count_fields(Bytes message, uint64_t number)
{
    Field field;
    int count = 0;
    while (next_field(&message, &field))
        count += field.number == number;
    return count;
}

static bool equals(Bytes bytes, const char *text)
{
    const size_t length = strlen(text);
    return (size_t)(bytes.end - bytes.at) == length && memcmp(bytes.at, text, length) == 0;
}

/* Looks a key up in the map that is a message's field of this number. */
static bool find_entry(Bytes message, uint64_t number, const char *key, Bytes *value)
{
    Field field, part;
    bool found = false;
    while (next_field(&message, &field)) {
        if (field.number != number)
            continue;
        Bytes entry = field.bytes;
        Bytes its_key = {entry.end, entry.end}, its_value = {entry.end, entry.end};
        while (next_field(&entry, &part)) {
            if (part.number == MAP_KEY)
                its_key = part.bytes;
            else if (part.number == MAP_VALUE)
                its_value = part.bytes;
        }
        if (equals(its_key, key)) {
            *value = its_value;
            found = true;
        }
    }
    return found;
}

static int64_t read_dim(Bytes message)
{
    Field field;
    int64_t size = 0;
    while (next_field(&message, &field))
        if (field.number == DIM_SIZE)
            size = (int64_t)field.value; /* -1 where it is free */
    return size;
}

static void read_shape(Bytes message, TensorInfo *info)
{
    Field field;
    bool unknown = false;
    info->rank = 0;
    while (next_field(&message, &field)) {
        if (field.number == SHAPE_DIM) {
            if (info->rank < MAX_RANK)
                info->dims[info->rank] = read_dim(field.bytes);
            info->rank++;
        } else if (field.number == SHAPE_UNKNOWN_RANK) {
            unknown = field.value != 0;
        }
    }
    if (unknown)
        info->rank = UNKNOWN_RANK;
}

static void read_tensor_info(Bytes message, TensorInfo *info)
{
    Field field;
    memset(info, 0, sizeof *info);
    info->name.at = info->name.end = message.end;
    while (next_field(&message, &field)) {
        if (field.number == TENSOR_NAME)
            info->name = field.bytes;
        else if (field.number == TENSOR_DTYPE)
            info->dtype = field.value;
        else if (field.number == TENSOR_SHAPE)
            read_shape(field.bytes, info);
    }
}

/* Finds an input or output of a signature: `side` is SIGNATURE_INPUTS or SIGNATURE_OUTPUTS. */
static bool find_tensor(Bytes signature, uint64_t side, const char *name, TensorInfo *info)
{
    Bytes found;
    if (!find_entry(signature, side, name, &found))
        return false;
    read_tensor_info(found, info);
    return true;
}

/* ================================================================ Names of a condition
 *
 * Read from the JSON that an exported SavedModel has in assets.extra. Reading stops at the text's end whatever it is,
 * and what is damaged is taken for missing. */

static const char MANIFEST[] = "assets.extra/keras_vae.json";

typedef struct {
    char **names;
    size_t count;
    bool exclusive; /* classes, of which an image has one; otherwise attributes, of which it has any */
} Names;

static void free_names(Names *names)
{
    for (size_t i = 0; i < names->count; i++)
        free(names->names[i]);
    free(names->names);
    memset(names, 0, sizeof *names);
}

static const char *after_space(const char *text)
{
    return text + strspn(text, " \t\r\n");
}

/* What is after a value. */
static const char *after_value(const char *text)
{
    for (int depth = 0; *text != '\0'; text++) {
        if (*text == '"') {
            for (text++; *text != '"' && *text != '\0'; text++)
                if (*text == '\\' && text[1] != '\0')
                    text++;
            if (*text == '\0')
                break;
        } else if (*text == '{' || *text == '[') {
            depth++;
        } else if ((*text == '}' || *text == ']') && depth-- == 0) {
            break;
        } else if (*text == ',' && depth == 0) {
            break;
        }
    }
    return text;
}

/* Reads the four digits of an escape, -1 where they are none. */
static long read_hex(const char *text)
{
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    long value = 0;
    for (int i = 0; i < 4; i++) {
        const char *digit = text[i] == '\0' ? NULL : strchr(digits, text[i]);
        if (digit == NULL)
            return -1;
        value = 16 * value + (digit - digits) % 16;
    }
    return value;
}

/* Writes a character as UTF-8; returns where the next one goes. */
static char *put_character(char *to, long code)
{
    if (code < 0x80) {
        *to++ = (char)code;
        return to;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3; /* bytes after the first */
    *to++ = (char)((0xff00 >> (more + 1) & 0xff) | code >> 6 * more);
    for (int i = more - 1; i >= 0; i--)
        *to++ = (char)(0x80 | (code >> 6 * i & 0x3f));
    return to;
}

/* Reads a string, and puts what is after it in `rest`. Returns NULL where there is none; release it with free(). */
static char *read_string(const char *text, const char **rest)
{
    /* Escapes are longer than what they stand for. */
    char *string = *text == '"' ? (char *)malloc((size_t)(after_value(text) - text)) : NULL;
    if (string == NULL)
        return NULL;
    char *to = string;
    for (text++; *text != '"' && *text != '\0';) {
        if (*text != '\\') {
            *to++ = *text++;
            continue;
        }
        static const char escapes[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
        const char *escape = text[1] == '\0' ? NULL : strchr(escapes, text[1]);
        long code = text[1] == 'u' ? read_hex(text + 2) : escape == NULL ? -1 : meanings[escape - escapes];
        if (code < 0 || (code == 0 && text[1] == 'u'))
            break;
        text += text[1] == 'u' ? 6 : 2;
        if (code >= 0xd800 && code < 0xdc00 && text[0] == '\\' && text[1] == 'u') { /* the first of a pair */
            const long second = read_hex(text + 2);
            if (second >= 0xdc00 && second < 0xe000) {
                code = 0x10000 + ((code - 0xd800) << 10) + (second - 0xdc00);
                text += 6;
            }
        }
        to = put_character(to, code);
    }
    if (*text != '"') {
        free(string);
        return NULL;
    }
    *to = '\0';
    *rest = text + 1;
    return string;
}

/* Finds the value of a key in an object; NULL where there is none. */
static const char *find_value(const char *object, const char *key)
{
    if (object == NULL || *after_space(object) != '{')
        return NULL;
    for (const char *at = after_space(object) + 1;; at++) {
        char *its_key = read_string(after_space(at), &at);
        at = after_space(at);
        if (its_key == NULL || *at != ':') {
            free(its_key);
            return NULL;
        }
        const bool found = strcmp(its_key, key) == 0;
        free(its_key);
        if (found)
            return after_space(at + 1);
        at = after_value(at + 1);
        if (*at != ',')
            return NULL;
    }
}

/* Reads what a model knows from the text of its manifest; nothing where that is missing or damaged. */
static void read_names(const char *manifest, Names *names)
{
    const char *entry = find_value(find_value(manifest, "metadata"), "condition"), *rest;
    char *condition = entry == NULL ? NULL : read_string(entry, &rest);
    const char *at = find_value(condition, "names"), *exclusive = find_value(condition, "exclusive");
    memset(names, 0, sizeof *names);
    names->exclusive = exclusive != NULL && strncmp(exclusive, "true", 4) == 0;
    bool good = at != NULL && *at == '[' && exclusive != NULL;
    while (good && *at != ']') {
        char *name = read_string(after_space(at + 1), &at); /* after [ or a comma */
        char **more = name == NULL ? NULL : (char **)realloc(names->names, (names->count + 1) * sizeof *more);
        at = after_space(at);
        good = more != NULL && (*at == ',' || *at == ']');
        if (more != NULL) {
            names->names = more;
            names->names[names->count++] = name;
        } else {
            free(name);
        }
    }
    if (!good)
        free_names(names);
    free(condition);
}

/* ================================================================ The decoder */

static const int64_t BATCH = 64; /* images made at once: memory for more would buy no speed */

typedef struct {
    int64_t latent_dim;
    int64_t condition_dim; /* numbers in a condition; 0 of a model without any */
    Names known;           /* what they are of */
    TF_Graph *graph;
    TF_Session *session;
    TF_DataType dtype;        /* of its images: TF_FLOAT, values in [0, 1], or TF_UINT8, levels 0..255 */
    TF_Output z, z_of, image; /* of the signature serving_default; what ends in _of are conditions */
    bool can_generate;        /* it has the signature generate, of these: */
    TF_Output noise, noise_of, generated;
    bool can_sample; /* it has the signature sample, of these: */
    TF_Output count, seed, sample_of, sampled;
} Decoder;

typedef struct {
    int64_t count, height, width, channels;
    /* Image after image, row after row, channels last. One of the two is there, as the decoder has it, the other NULL;
     * release both with free(). */
    float *pixels;         /* in [0, 1] */
    unsigned char *levels; /* 0..255, of a decoder that was exported with --output uint8 */
} Images;

/* How long the first line of TensorFlow's message is; further ones name nodes of the graph. */
static int first_line(const TF_Status *status)
{
    return (int)strcspn(TF_Message(status), "\n");
}

/* Finds in the graph the tensor that a signature names, if it is of this type and rank. */
static bool resolve(TF_Graph *graph, Bytes signature, uint64_t side, const char *name, TF_DataType dtype, int rank,
                    TF_Output *output)
{
    TensorInfo info;
    char text[1024];
    if (!find_tensor(signature, side, name, &info) || info.dtype != (uint64_t)dtype || info.rank != rank)
        return false;
    const size_t length = (size_t)(info.name.end - info.name.at);
    if (length >= sizeof text)
        return false;
    memcpy(text, info.name.at, length);
    text[length] = '\0';
    char *colon = strrchr(text, ':');
    if (colon == NULL)
        return false;
    *colon = '\0';
    char *end;
    const long index = strtol(colon + 1, &end, 10);
    output->oper = TF_GraphOperationByName(graph, text);
    if (output->oper == NULL || *end != '\0' || index < 0 || index >= TF_OperationNumOutputs(output->oper))
        return false;
    output->index = (int)index;
    return true;
}

/* Finds the condition among the inputs of a signature, beside so many others: there as `condition_dim` says. */
static bool resolve_condition(Decoder *decoder, Bytes signature, int others, int rank, TF_Output *output)
{
    TensorInfo info;
    if (count_fields(signature, SIGNATURE_INPUTS) != others + (decoder->condition_dim > 0))
        return false;
    return decoder->condition_dim == 0 ||
           (find_tensor(signature, SIGNATURE_INPUTS, "condition", &info) &&
            resolve(decoder->graph, signature, SIGNATURE_INPUTS, "condition", TF_FLOAT, rank, output) &&
            info.dims[rank - 1] == decoder->condition_dim);
}

static bool resolve_signatures(Decoder *decoder, Bytes meta_graph)
{
    Bytes signature;
    TensorInfo z, condition;
    TF_Graph *graph = decoder->graph;
    TensorInfo image;
    if (!find_entry(meta_graph, META_GRAPH_SIGNATURES, "serving_default", &signature) ||
        !find_tensor(signature, SIGNATURE_OUTPUTS, "image", &image))
        return false;
    const TF_DataType dtype = decoder->dtype = image.dtype == TF_UINT8 ? TF_UINT8 : TF_FLOAT;
    if (find_tensor(signature, SIGNATURE_INPUTS, "condition", &condition) && condition.rank == 2)
        decoder->condition_dim = condition.dims[1] > 0 ? condition.dims[1] : 0;
    if (!resolve_condition(decoder, signature, 1, 2, &decoder->z_of) ||
        !find_tensor(signature, SIGNATURE_INPUTS, "z", &z) ||
        !resolve(graph, signature, SIGNATURE_INPUTS, "z", TF_FLOAT, 2, &decoder->z) ||
        !resolve(graph, signature, SIGNATURE_OUTPUTS, "image", dtype, 4, &decoder->image) || z.dims[1] < 1)
        return false;
    decoder->latent_dim = z.dims[1];
    TensorInfo noise;
    decoder->can_generate = find_entry(meta_graph, META_GRAPH_SIGNATURES, "generate", &signature) &&
                            resolve_condition(decoder, signature, 1, 2, &decoder->noise_of) &&
                            find_tensor(signature, SIGNATURE_INPUTS, "noise", &noise) &&
                            resolve(graph, signature, SIGNATURE_INPUTS, "noise", TF_FLOAT, 2, &decoder->noise) &&
                            resolve(graph, signature, SIGNATURE_OUTPUTS, "image", dtype, 4, &decoder->generated) &&
                            noise.dims[1] == z.dims[1];
    decoder->can_sample = find_entry(meta_graph, META_GRAPH_SIGNATURES, "sample", &signature) &&
                          resolve_condition(decoder, signature, 2, 1, &decoder->sample_of) &&
                          resolve(graph, signature, SIGNATURE_INPUTS, "count", TF_INT64, 0, &decoder->count) &&
                          resolve(graph, signature, SIGNATURE_INPUTS, "seed", TF_INT64, 0, &decoder->seed) &&
                          resolve(graph, signature, SIGNATURE_OUTPUTS, "image", dtype, 4, &decoder->sampled);
    return true;
}

/* Releases a decoder; NULL is fine. */
void decoder_close(Decoder *decoder)
{
    if (decoder == NULL)
        return;
    TF_Status *status = TF_NewStatus(); /* a session that does not close well has nothing left to be done about it */
    if (decoder->session != NULL) {
        TF_CloseSession(decoder->session, status);
        TF_DeleteSession(decoder->session, status);
    }
    TF_DeleteGraph(decoder->graph);
    TF_DeleteStatus(status);
    free_names(&decoder->known);
    free(decoder);
}

/* Opens a file of this name in a folder; NULL where it cannot be read. */
static FILE *open_file(const char *folder, const char *name)
{
    const size_t length = strlen(folder) + strlen(name) + 2;
    char *path = (char *)malloc(length);
    if (path == NULL)
        return NULL;
    snprintf(path, length, "%s/%s", folder, name);
    FILE *file = fopen(path, "rb");
    free(path);
    return file;
}

/* Whether a folder has a file of this name. */
static bool has_file(const char *folder, const char *name)
{
    FILE *file = open_file(folder, name);
    return file != NULL && fclose(file) == 0;
}

/* Reads the names of a conditional model; refuses one that does not name as many as it takes. */
static bool find_names(Decoder *decoder, const char *saved_model, Failure *failure)
{
    if (decoder->condition_dim == 0)
        return true;
    FILE *file = open_file(saved_model, MANIFEST);
    char *text = NULL;
    size_t length = 0, room = 0;
    while (file != NULL && length == room) { /* until a part is not filled */
        room += 1 << 16;
        char *more = (char *)realloc(text, room + 1);
        if (more == NULL)
            break;
        text = more;
        length += fread(text + length, 1, room - length, file);
    }
    if (file != NULL)
        fclose(file);
    if (text != NULL) {
        text[length] = '\0';
        read_names(text, &decoder->known);
    }
    free(text);
    return (int64_t)decoder->known.count == decoder->condition_dim ||
           fail(failure, INPUT_ERROR, "%s takes conditions of %lld numbers, and its file %s names %zu: export it again",
                saved_model, (long long)decoder->condition_dim, MANIFEST, decoder->known.count);
}

/* Loads the SavedModel in this folder. Returns NULL and fills in `failure` if it cannot be read or is not a decoder. */
Decoder *decoder_open(const char *saved_model, Failure *failure)
{
    static const char *const tags[] = {"serve"};
    /* Without it TensorFlow loads the rest, and the first image fails. */
    if (has_file(saved_model, "saved_model.pb") && !has_file(saved_model, "variables/variables.index")) {
        fail(failure, INPUT_ERROR, "%s lacks its file variables/variables.index: copy it whole or export it again",
             saved_model);
        return NULL;
    }
    Decoder *decoder = (Decoder *)calloc(1, sizeof *decoder);
    if (decoder == NULL) {
        fail(failure, OTHER_ERROR, "out of memory");
        return NULL;
    }
    /* TensorFlow's own TF_New... never return NULL: they end the program where memory does. */
    TF_Status *status = TF_NewStatus();
    TF_SessionOptions *options = TF_NewSessionOptions();
    TF_Buffer *buffer = TF_NewBuffer();
    decoder->graph = TF_NewGraph();
    decoder->session =
        TF_LoadSessionFromSavedModel(options, NULL, saved_model, tags, 1, decoder->graph, buffer, status);
    bool ready = TF_GetCode(status) == TF_OK;
    if (ready) {
        const unsigned char *data = (const unsigned char *)buffer->data;
        const Bytes meta_graph = {data, data + buffer->length};
        ready = (resolve_signatures(decoder, meta_graph) ||
                 fail(failure, INPUT_ERROR,
                      "%s is not a decoder: its signature serving_default does not take z and return image",
                      saved_model)) &&
                find_names(decoder, saved_model, failure);
    } else {
        fail(failure, INPUT_ERROR, "cannot read %s (give the folder of a saved_model.pb, or export it again): %.*s",
             saved_model, first_line(status), TF_Message(status));
    }
    TF_DeleteBuffer(buffer);
    TF_DeleteSessionOptions(options);
    TF_DeleteStatus(status);
    if (!ready) {
        decoder_close(decoder);
        return NULL;
    }
    return decoder;
}

/* Copies a batch of images to its place, and makes room for all when it is the first. */
static bool keep_batch(const TF_Tensor *tensor, TF_DataType dtype, int64_t start, int64_t count, Images *images,
                       Failure *failure)
{
    if (TF_TensorType(tensor) != dtype || TF_NumDims(tensor) != 4 || TF_Dim(tensor, 0) != count ||
        TF_TensorElementCount(tensor) < 1)
        return fail(failure, OTHER_ERROR, "the decoder returned something other than a batch of images");
    if (images->pixels == NULL && images->levels == NULL) {
        images->height = TF_Dim(tensor, 1);
        images->width = TF_Dim(tensor, 2);
        images->channels = TF_Dim(tensor, 3);
        void *room = calloc((size_t)images->count, TF_TensorByteSize(tensor) / (size_t)count);
        if (dtype == TF_UINT8)
            images->levels = (unsigned char *)room;
        else
            images->pixels = (float *)room;
        if (room == NULL)
            return fail(failure, OTHER_ERROR, "out of memory for %lld images", (long long)images->count);
    }
    const int64_t size = images->height * images->width * images->channels;
    if (TF_TensorElementCount(tensor) != count * size)
        return fail(failure, OTHER_ERROR, "the decoder returned images of different sizes");
    void *place = dtype == TF_UINT8 ? (void *)(images->levels + start * size) : (void *)(images->pixels + start * size);
    memcpy(place, TF_TensorData(tensor), TF_TensorByteSize(tensor));
    return true;
}

/* Runs the graph from these inputs, which it releases, to `count` images. */
static bool run(Decoder *decoder, const TF_Output *inputs, TF_Tensor **values, int number, TF_Output output,
                int64_t start, int64_t count, Images *images, Failure *failure)
{
    bool done = true;
    for (int i = 0; i < number; i++)
        done = done && values[i] != NULL;
    if (!done)
        fail(failure, OTHER_ERROR, "out of memory");
    if (done) {
        TF_Status *status = TF_NewStatus();
        TF_Tensor *result = NULL;
        TF_SessionRun(decoder->session, NULL, inputs, values, number, &output, &result, 1, NULL, 0, NULL, status);
        done = TF_GetCode(status) == TF_OK ? keep_batch(result, decoder->dtype, start, count, images, failure)
                                           : fail(failure, OTHER_ERROR, "decoding failed: %.*s",
                                                  first_line(status), TF_Message(status));
        if (result != NULL)
            TF_DeleteTensor(result);
        TF_DeleteStatus(status);
    }
    for (int i = 0; i < number; i++)
        if (values[i] != NULL)
            TF_DeleteTensor(values[i]);
    if (!done) {
        free(images->pixels);
        free(images->levels);
        images->pixels = NULL;
        images->levels = NULL;
    }
    return done;
}

static TF_Tensor *new_tensor(TF_DataType dtype, const int64_t *dims, int rank, const void *data, size_t size)
{
    TF_Tensor *tensor = TF_AllocateTensor(dtype, dims, rank, size);
    if (tensor != NULL)
        memcpy(TF_TensorData(tensor), data, size);
    return tensor;
}

/* A tensor of `count` times the same condition, of rank 2, or of one, of rank 1, if `count` is 0; NULL is all zeros,
 * images of any kind. */
static TF_Tensor *new_condition(const Decoder *decoder, const float *condition, int64_t count)
{
    const int64_t dims[] = {count, decoder->condition_dim}, rows = count == 0 ? 1 : count;
    const size_t size = (size_t)decoder->condition_dim * sizeof *condition;
    TF_Tensor *tensor = TF_AllocateTensor(TF_FLOAT, dims + (count == 0), count == 0 ? 1 : 2, (size_t)rows * size);
    if (tensor == NULL)
        return NULL;
    char *place = (char *)TF_TensorData(tensor);
    for (int64_t row = 0; row < rows; row++, place += size)
        condition != NULL ? memcpy(place, condition, size) : memset(place, 0, size);
    return tensor;
}

/* Runs the graph on vectors, a batch at a time. */
static bool run_batches(Decoder *decoder, TF_Output input, TF_Output input_of, TF_Output output, const float *vectors,
                        int64_t count, const float *condition, Images *images, Failure *failure)
{
    const TF_Output inputs[] = {input, input_of};
    const int number = decoder->condition_dim > 0 ? 2 : 1;
    memset(images, 0, sizeof *images);
    images->count = count;
    if (count < 1)
        return fail(failure, INPUT_ERROR, "nothing to make images of: give one vector at least");
    for (int64_t start = 0; start < count; start += BATCH) {
        const int64_t batch = count - start < BATCH ? count - start : BATCH;
        const int64_t dims[] = {batch, decoder->latent_dim};
        const size_t size = (size_t)(batch * decoder->latent_dim) * sizeof *vectors;
        TF_Tensor *values[] = {new_tensor(TF_FLOAT, dims, 2, vectors + start * decoder->latent_dim, size),
                               number == 2 ? new_condition(decoder, condition, batch) : NULL};
        if (!run(decoder, inputs, values, number, output, start, batch, images, failure))
            return false;
    }
    return true;
}

/* Finds a name of this length; refuses one that the model does not know, and says which it does. */
static bool find_name(const Decoder *decoder, const char *name, size_t length, size_t *place, Failure *failure)
{
    enum { SHOWN = 20 };
    const Names *known = &decoder->known;
    for (*place = 0; *place < known->count; ++*place)
        if (strlen(known->names[*place]) == length && memcmp(known->names[*place], name, length) == 0)
            return true;
    char list[400] = "";
    size_t used = 0;
    for (size_t i = 0; i < known->count && i < SHOWN && used < sizeof list; i++)
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", i == 0 ? "" : ", ", known->names[i]);
    if (known->count > SHOWN && used < sizeof list)
        snprintf(list + used, sizeof list - used, " and %zu more", known->count - SHOWN);
    return fail(failure, INPUT_ERROR, "no %s '%.*s': this model knows %s", known->exclusive ? "class" : "attribute",
                length < 40 ? (int)length : 40, name, list);
}

/* What a text asks for: a class by its name, or attributes as in "glasses=1,hat=0". Returns decoder->condition_dim
 * numbers, as the functions below take them, to be released with free(): 1 for the class or an attribute, -1 for an
 * attribute that images are to lack, 0 for the others. Returns NULL and fills in `failure` if the model does not know
 * what is asked. */
float *decoder_condition(const Decoder *decoder, const char *text, Failure *failure)
{
    if (decoder->condition_dim == 0) {
        fail(failure, INPUT_ERROR, "a condition is given, and this model takes none: leave it out");
        return NULL;
    }
    float *condition = (float *)calloc((size_t)decoder->condition_dim, sizeof *condition);
    bool good = condition != NULL || fail(failure, OTHER_ERROR, "out of memory");
    size_t place = 0;
    if (good && decoder->known.exclusive) {
        good = find_name(decoder, text, strlen(text), &place, failure);
        if (good)
            condition[place] = 1;
    } else {
        for (const char *at = text, *end; good; at = end + 1) {
            end = at + strcspn(at, ",");
            const size_t length = (size_t)(end - at);
            good = (length > 2 && end[-2] == '=' && (end[-1] == '0' || end[-1] == '1')) ||
                   fail(failure, INPUT_ERROR, "attribute '%.*s': give a name and 1 or 0, such as %.80s=1",
                        length < 40 ? (int)length : 40, at, decoder->known.names[0]);
            good = good && find_name(decoder, at, length - 2, &place, failure);
            if (good)
                condition[place] = end[-1] == '1' ? 1 : -1;
            if (*end == '\0')
                break;
        }
    }
    if (!good) {
        free(condition);
        return NULL;
    }
    return condition;
}

/* Images of `count` latent vectors: `z` holds count * decoder->latent_dim finite numbers. `condition` is what all the
 * images are to be of, decoder->condition_dim finite numbers, or NULL for images of any kind.
 * Returns false and fills in `failure` if it cannot be done. Any number of threads may call it at once. */
bool decoder_decode(Decoder *decoder, const float *z, int64_t count, const float *condition, Images *images,
                    Failure *failure)
{
    return run_batches(decoder, decoder->z, decoder->z_of, decoder->image, z, count, condition, images, failure);
}

/* Images of noise, by the prior and the decoder: `noise` holds count * decoder->latent_dim standard normal numbers.
 * Otherwise as decoder_decode. */
bool decoder_generate(Decoder *decoder, const float *noise, int64_t count, const float *condition, Images *images,
                      Failure *failure)
{
    memset(images, 0, sizeof *images);
    if (!decoder->can_generate)
        return fail(failure, INPUT_ERROR, "the SavedModel has no signature generate: give latents, or export it again");
    return run_batches(decoder, decoder->noise, decoder->noise_of, decoder->generated, noise, count, condition, images,
                       failure);
}

/* `count` images of noise that the SavedModel draws; the same seed gives the same images, the first ones alike
 * whatever the count. It makes them in one batch: memory grows with it. Otherwise as decoder_decode. */
bool decoder_sample(Decoder *decoder, int64_t count, int64_t seed, const float *condition, Images *images,
                    Failure *failure)
{
    memset(images, 0, sizeof *images);
    images->count = count;
    if (!decoder->can_sample)
        return fail(failure, INPUT_ERROR, "the SavedModel has no signature sample: give latents, or export it again");
    if (count < 1)
        return fail(failure, INPUT_ERROR, "%lld samples: give a number from 1 on", (long long)count);
    const TF_Output inputs[] = {decoder->count, decoder->seed, decoder->sample_of};
    const int number = decoder->condition_dim > 0 ? 3 : 2;
    TF_Tensor *values[] = {new_tensor(TF_INT64, NULL, 0, &count, sizeof count),
                           new_tensor(TF_INT64, NULL, 0, &seed, sizeof seed),
                           number == 3 ? new_condition(decoder, condition, 0) : NULL};
    return run(decoder, inputs, values, number, decoder->sampled, 0, count, images, failure);
}

/* ================================================================ The command */

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_SAMPLES = 1000 }; /* in one batch: gigabytes at 64x64 */

static const char usage[] =
    "usage: decode SAVED_MODEL Z OUT\n"
    "       decode SAVED_MODEL --seed N [--count N] OUT\n"
    "       decode SAVED_MODEL --noise FILE OUT\n"
    "       each with --condition WHAT too, of a conditional model\n"
    "\n"
    "  SAVED_MODEL   folder of an exported model: it holds saved_model.pb\n"
    "  Z             text file of latent vectors: numbers separated by whitespace; - for standard input\n"
    "  OUT           .ppm (3 channels) or .pgm (1 channel): a picture, several images as a grid;\n"
    "                .f32: the images' values in [0, 1], float32 [image, row, column, channel] without a header\n"
    "  --seed N      instead of Z: samples of the model's prior, the same ones for the same seed\n"
    "  --count N     how many, 1 to 1000; 1 if not given\n"
    "  --noise FILE  instead of Z: samples of standard normal numbers in a file like Z's; - for standard input\n"
    "  --condition WHAT  the class of all images, or their attributes, as in glasses=1,hat=0; without it they are of\n"
    "                any kind\n";

typedef struct {
    const char *saved_model, *vectors, *out; /* vectors are a file's, NULL with a seed */
    const char *condition;                   /* NULL for images of any kind */
    bool help, are_noise;
    int64_t seed, count;
} Command;

typedef struct {
    float *values;
    size_t count, room;
} Numbers;

/* TensorFlow's libraries log while they load, whatever TF_CPP_MIN_LOG_LEVEL says, and read it then: setenv in main is
 * too late. So standard error is put away in .preinit_array, which runs before their initializers. Where the user has
 * set the variable, main brings it back, and TensorFlow heeds it from there; 0 leaves everything as it is. */
static int standard_error = STDERR_FILENO;
static bool log_is_wanted;

static void hush(int argc, char **argv, char **environment)
{
    static const char name[] = "TF_CPP_MIN_LOG_LEVEL=";
    (void)argc, (void)argv;
    for (; *environment != NULL; environment++) { /* getenv does not work yet */
        if (strncmp(*environment, name, sizeof name - 1) == 0) {
            log_is_wanted = true;
            if (strcmp(*environment + sizeof name - 1, "0") == 0)
                return;
        }
    }
    const int nowhere = open("/dev/null", O_WRONLY);
    const int kept = dup(STDERR_FILENO);
    if (nowhere >= 0 && kept >= 0 && dup2(nowhere, STDERR_FILENO) >= 0)
        standard_error = kept;
    if (nowhere > STDERR_FILENO)
        close(nowhere);
}

__attribute__((section(".preinit_array"), used))
static void (*hush_first)(int, char **, char **) = hush;

static bool is_named(const char *path, const char *ending)
{
    const size_t length = strlen(path), tail = strlen(ending);
    return length > tail && strcasecmp(path + length - tail, ending) == 0;
}

static bool read_whole_number(const char *option, const char *text, int64_t least, int64_t most, int64_t *number,
                              Failure *failure)
{
    char *end;
    errno = 0;
    const long long value = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || value < least || value > most)
        return fail(failure, INPUT_ERROR, "%s %s: give a whole number from %lld to %lld", option, text,
                    (long long)least, (long long)most);
    *number = value;
    return true;
}

static bool read_command(int argc, char **argv, Command *command, Failure *failure)
{
    static const struct option options[] = {{"seed", required_argument, NULL, 's'},
                                            {"noise", required_argument, NULL, 'n'},
                                            {"count", required_argument, NULL, 'c'},
                                            {"condition", required_argument, NULL, 'o'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    bool has_seed = false, has_count = false, good = true;
    int option;
    memset(command, 0, sizeof *command);
    command->count = 1;
    opterr = 0;
    while (good && (option = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        switch (option) {
        case 'h':
            command->help = true;
            return true;
        case 's':
            has_seed = true;
            good = read_whole_number("--seed", optarg, INT64_MIN, INT64_MAX, &command->seed, failure);
            break;
        case 'c':
            has_count = true;
            good = read_whole_number("--count", optarg, 1, MAX_SAMPLES, &command->count, failure);
            break;
        case 'n':
            command->are_noise = true;
            command->vectors = optarg;
            break;
        case 'o':
            command->condition = optarg;
            break;
        case ':':
            good = fail(failure, INPUT_ERROR, "%s: give a %s after it", argv[optind - 1],
                        optopt == 'n' ? "file" : optopt == 'o' ? "class, or attributes," : "whole number");
            break;
        default: {
            const char letter[] = {'-', (char)optopt, '\0'};
            good = fail(failure, INPUT_ERROR, "%s: no such option; see decode --help",
                        optopt != 0 ? letter : argv[optind - 1]);
        }
        }
    }
    if (!good)
        return false;
    if (has_count && !has_seed)
        return fail(failure, INPUT_ERROR, "--count goes with --seed; a file tells itself how many images there are");
    if ((has_seed && command->are_noise) || argc - optind != (has_seed || command->are_noise ? 2 : 3))
        return fail(failure, INPUT_ERROR,
                    "give SAVED_MODEL, Z or --seed N or --noise FILE, and OUT; see decode --help");
    command->saved_model = argv[optind];
    if (!has_seed && !command->are_noise)
        command->vectors = argv[optind + 1];
    command->out = argv[argc - 1];
    return true;
}

/* Refuses, before any work, a name that says no format or whose folder takes no files. */
static bool check_out(const char *out, Failure *failure)
{
    if (!is_named(out, ".ppm") && !is_named(out, ".pgm") && !is_named(out, ".f32"))
        return fail(failure, INPUT_ERROR, "%s: name a file that ends in .ppm, .pgm or .f32", out);
    char *folder = strdup(out);
    if (folder == NULL)
        return fail(failure, OTHER_ERROR, "out of memory");
    char *slash = strrchr(folder, '/');
    if (slash != NULL)
        slash[slash == folder] = '\0'; /* the root keeps its slash */
    const bool writable = access(slash != NULL ? folder : ".", W_OK | X_OK) == 0;
    const char *why = strerror(errno);
    free(folder);
    return writable || fail(failure, INPUT_ERROR, "cannot write %s: %s", out, why);
}

/* Reads up to the next whitespace; false at the end of the file. What does not fit is the next word. */
static bool read_word(FILE *file, char *word, size_t room, size_t *length, long *line)
{
    int byte;
    *length = 0;
    while ((byte = getc(file)) != EOF && *length + 1 < room) {
        if (!isspace(byte)) {
            word[(*length)++] = (char)byte;
        } else if (*length > 0) {
            ungetc(byte, file);
            break;
        } else if (byte == '\n') {
            ++*line;
        }
    }
    word[*length] = '\0';
    return *length > 0;
}

static bool append(Numbers *numbers, float value, Failure *failure)
{
    if (numbers->count == numbers->room) {
        const size_t room = numbers->room == 0 ? 1024 : 2 * numbers->room;
        float *values = room > SIZE_MAX / sizeof *values
                            ? NULL
                            : (float *)realloc(numbers->values, room * sizeof *values);
        if (values == NULL)
            return fail(failure, OTHER_ERROR, "out of memory after %zu numbers", numbers->count);
        numbers->values = values;
        numbers->room = room;
    }
    numbers->values[numbers->count++] = value;
    return true;
}

static bool read_numbers_from(FILE *file, const char *name, Numbers *numbers, Failure *failure)
{
    char word[128], *end;
    size_t length;
    long line = 1;
    while (read_word(file, word, sizeof word, &length, &line)) {
        const float value = strtof(word, &end);
        if (end != word + length || !isfinite(value))
            return fail(failure, INPUT_ERROR,
                        "%s, line %ld: '%.40s' is not a finite float32 number: give numbers separated by whitespace", name,
                        line, word);
        if (!append(numbers, value, failure))
            return false;
    }
    if (ferror(file))
        return fail(failure, INPUT_ERROR, "cannot read %s: %s", name, strerror(errno));
    return true;
}

static bool is_standard_input(const char *path)
{
    return strcmp(path, "-") == 0;
}

static bool read_numbers(const char *path, Numbers *numbers, Failure *failure)
{
    if (is_standard_input(path))
        return read_numbers_from(stdin, "standard input", numbers, failure);
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return fail(failure, INPUT_ERROR, "cannot read %s: %s", path, strerror(errno));
    const bool good = read_numbers_from(file, path, numbers, failure);
    fclose(file);
    return good;
}

static unsigned char to_byte(float value)
{
    return value > 0 ? (unsigned char)lrintf(255 * (value < 1 ? value : 1)) : 0; /* NaN is black */
}

/* Writes a grid of as many columns as rows, or one more; places left over are white. False with errno set. */
static bool write_picture(FILE *file, const Images *images)
{
    int64_t columns = 1;
    while (columns * columns < images->count)
        columns++;
    const int64_t rows = (images->count + columns - 1) / columns;
    const size_t across = (size_t)(images->width * images->channels);
    unsigned char *line = (unsigned char *)malloc((size_t)columns * across);
    if (line == NULL)
        return false;
    bool good = fprintf(file, "P%d\n%lld %lld\n255\n", images->channels == 3 ? 6 : 5,
                        (long long)(columns * images->width), (long long)(rows * images->height)) > 0;
    for (int64_t y = 0; good && y < rows * images->height; y++) {
        memset(line, 255, (size_t)columns * across);
        for (int64_t column = 0; column < columns; column++) {
            const int64_t image = y / images->height * columns + column;
            if (image >= images->count)
                break;
            const size_t start = (size_t)(image * images->height + y % images->height) * across;
            unsigned char *place = line + (size_t)column * across;
            for (size_t i = 0; i < across; i++)
                place[i] = images->levels != NULL ? images->levels[start + i] : to_byte(images->pixels[start + i]);
        }
        good = fwrite(line, across, (size_t)columns, file) == (size_t)columns;
    }
    free(line);
    return good;
}

static bool write_floats(FILE *file, const Images *images)
{
    const size_t size = (size_t)(images->count * images->height * images->width * images->channels);
    if (images->levels == NULL)
        return fwrite(images->pixels, sizeof *images->pixels, size, file) == size;
    bool good = true;
    for (size_t i = 0; good && i < size; i++) {
        const float value = (float)images->levels[i] / 255;
        good = fwrite(&value, sizeof value, 1, file) == 1;
    }
    return good;
}

/* Writes to a new file beside OUT. False with errno set; then the file is gone. */
static bool write_aside(const char *out, char *aside, const Images *images)
{
    const mode_t mask = umask(0);
    umask(mask);
    const int descriptor = mkstemp(aside);
    if (descriptor < 0)
        return false;
    FILE *file = fdopen(descriptor, "wb");
    bool good = file != NULL && fchmod(descriptor, 0666 & ~mask) == 0 &&
                (is_named(out, ".f32") ? write_floats(file, images) : write_picture(file, images));
    int why = errno;
    if (file == NULL)
        close(descriptor);
    else if (fclose(file) != 0 && good) {
        why = errno;
        good = false;
    }
    if (!good)
        unlink(aside);
    errno = why;
    return good;
}

/* Puts the images in OUT, whole or not at all. */
static bool write_images(const char *out, const Images *images, Failure *failure)
{
    const int64_t channels = images->channels;
    if ((is_named(out, ".ppm") && channels != 3) || (is_named(out, ".pgm") && channels != 1))
        return fail(failure, INPUT_ERROR, "%s: the images' channels are %lld: name a file that ends in %s", out,
                    (long long)channels, channels == 3 ? ".ppm" : channels == 1 ? ".pgm" : ".f32");
    static const char suffix[] = ".XXXXXX";
    char *aside = (char *)malloc(strlen(out) + sizeof suffix);
    if (aside == NULL)
        return fail(failure, OTHER_ERROR, "out of memory");
    strcat(strcpy(aside, out), suffix);
    bool good = write_aside(out, aside, images);
    if (good && rename(aside, out) != 0) {
        const int why = errno;
        unlink(aside);
        errno = why;
        good = false;
    }
    const char *why = good ? "" : strerror(errno);
    free(aside);
    return good || fail(failure, INPUT_ERROR, "cannot write %s: %s", out, why);
}

static bool use_numbers(Decoder *decoder, const Command *command, const Numbers *numbers, const float *condition,
                        Images *images, Failure *failure)
{
    if (numbers->count == 0 || numbers->count % (size_t)decoder->latent_dim != 0)
        return fail(failure, INPUT_ERROR, "%s holds %zu numbers: this decoder takes vectors of %lld",
                    is_standard_input(command->vectors) ? "standard input" : command->vectors, numbers->count,
                    (long long)decoder->latent_dim);
    const int64_t count = (int64_t)numbers->count / decoder->latent_dim;
    return command->are_noise ? decoder_generate(decoder, numbers->values, count, condition, images, failure)
                              : decoder_decode(decoder, numbers->values, count, condition, images, failure);
}

static bool run_command(const Command *command, Failure *failure)
{
    Numbers numbers = {NULL, 0, 0};
    Images images = {0, 0, 0, 0, NULL, NULL};
    Decoder *decoder = NULL;
    float *condition = NULL;
    bool good = check_out(command->out, failure) &&
                (command->vectors == NULL || read_numbers(command->vectors, &numbers, failure)) &&
                (decoder = decoder_open(command->saved_model, failure)) != NULL &&
                (command->condition == NULL ||
                 (condition = decoder_condition(decoder, command->condition, failure)) != NULL) &&
                (command->vectors == NULL
                     ? decoder_sample(decoder, command->count, command->seed, condition, &images, failure)
                     : use_numbers(decoder, command, &numbers, condition, &images, failure)) &&
                write_images(command->out, &images, failure);
    if (good)
        printf("%lld %s of %lldx%lldx%lld in %s\n", (long long)images.count, images.count == 1 ? "image" : "images",
               (long long)images.height, (long long)images.width, (long long)images.channels, command->out);
    decoder_close(decoder);
    free(images.pixels);
    free(images.levels);
    free(numbers.values);
    free(condition);
    return good;
}

int main(int argc, char **argv)
{
    Command command;
    Failure failure = {0, ""};
    if (log_is_wanted && standard_error != STDERR_FILENO) {
        dup2(standard_error, STDERR_FILENO);
        close(standard_error);
        standard_error = STDERR_FILENO;
    }
    bool good = read_command(argc, argv, &command, &failure);
    if (good && command.help)
        fputs(usage, stdout);
    else if (good)
        good = run_command(&command, &failure);
    if (!good)
        dprintf(standard_error, "decode: %s\n", failure.message);
    return failure.status;
}
