// What kernels are called with. `params.rs` has the same structs, field by field.
#pragma once

// Tokens of a page of keys and values.
constexpr int PAGE_TOKENS = 16;

// Consecutive rows of a chunk that are consecutive tokens of one text.
struct Span {
    // Elements from a layer of a page to the next; 0 where pages hold one layer.
    long long layer_stride;
    // The first row, and how many there are.
    int row, rows;
    // Where in its text the first row stands.
    int position;
    // Number of the text in its pass.
    int segment;
    // Where in the tables of pages the text's begins.
    int table;
    int unused;
};

// Where a chunk's rows stand: the same at every layer.
struct Places {
    const Span *spans;
    // The span of each row; -1 for a row that stands for none.
    const int *row_spans;
    // Addresses of pages, text by text. A page is [layers][2][key_value][PAGE_TOKENS][dim]: keys,
    // then values.
    const unsigned long long *tables;
};

struct Heads {
    int query, key_value, dim;
};

struct EmbedParams {
    const void *table;
    const unsigned *tokens;
    void *out;
    int width;
};

struct NormParams {
    void *x;
    // What is added to x first, or null.
    const void *y;
    const float *weight;
    void *out;
    int width;
    float eps;
};

struct AddParams {
    void *x;
    const void *y;
    // Rows of y's values; 1 for a vector that every row gets.
    int y_rows;
    int rows, width;
};

struct GateParams {
    const void *gate_up;
    void *out;
    int rows, width;
};

struct RotateParams {
    void *qkv;
    // [rows, dim / 2]
    const float *cos, *sin;
    // Weights of the heads' norms, or null.
    const float *query_norm, *key_norm;
    Places places;
    Heads heads;
    int rows, layer;
    float eps;
};

// Some of a span's queries, and the keys that they are held against.
struct Work {
    // -1 where there is no work.
    int span;
    // The first of the queries, as (token in the span) * group + (head in the group).
    int first;
    int key_begin, key_end;
    // Where the part of a result is put, or -1 where it is the whole.
    int slot;
};

// Parts of a result that become one.
struct Merge {
    int span, first;
    // The first part, and how many there are; 0 where there is nothing to put together.
    int slot, count;
};

struct AttentionParams {
    const void *qkv;
    // [rows, query * dim]
    void *out;
    const Work *work;
    // For each slot and key head: [tile rows, dim], and [tile rows, 2], the largest score and the
    // sum of the weights.
    float *parts, *extents;
    Places places;
    Heads heads;
    int layer;
    // What scores are multiplied by, times log2(e).
    float scale;
};

struct MergeParams {
    const float *parts, *extents;
    void *out;
    const Merge *merges;
    const Span *spans;
    Heads heads;
    int tile_rows;
};

// What is read of a text of a pass.
struct ReadText {
    // Where in the tables of pages the text's begins, or -1: then its neurons are summed alone.
    int table;
    // Tokens, from its first one on, whose neurons are summed from its pages.
    int summed;
};

// What is read of a pass's texts.
struct Reading {
    // Where the sums are, [texts, features].
    double *const *sums;
    const ReadText *texts;
    // Addresses of pages, text by text, [PAGE_TOKENS, features] each.
    const unsigned long long *tables;
    int features;
};

struct GatherParams {
    const void *states;
    // The columns that are read, and how many there are.
    const unsigned *columns;
    Reading reading;
    Places places;
    int width, count;
    // Where among the features the columns begin.
    int start;
};
