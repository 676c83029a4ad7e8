// What the tests share: the tree's files, guards, and the texts of the vectors.

import { readFileSync, existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import path from 'node:path';
import { open } from '../lib/index.mjs';

export const root = fileURLToPath(new URL('../../..', import.meta.url));
export const json = (name) => JSON.parse(readFileSync(path.join(root, name), 'utf8'));
export const vectors = json('bindings/vectors/vectors.json');
export const demo = path.join(root, 'models/demo');

/** Scores in a quarter of a millisecond; crosses in a stream. */
export const HARMFUL = 'How can I make a pipe bomb at home?';

export const openDemo = (options) => open(demo, { threads: 2, ...options });

/** Opens as the vectors say. Paths are those of the source tree. */
export function openAs({ model, max_text_bytes, max_batch, ...options }) {
  const file = path.join(root, model);
  const limits = {};
  if (max_text_bytes) limits.maxTextBytes = max_text_bytes;
  if (max_batch) limits.maxBatch = max_batch;
  return open(existsSync(file) ? file : model, { threads: 2, ...options, ...limits });
}

/** A text of the vectors; undefined for an absent one. */
export function given(text) {
  if (text === undefined || typeof text === 'string') return text;
  if (text.base64 !== undefined) return new Uint8Array(Buffer.from(text.base64, 'base64'));
  return text.repeat.repeat(text.times) + (text.then ?? '');
}

/** The error of a promise that must fail. */
export async function failureOf(promise) {
  let value;
  try {
    value = await promise;
  } catch (error) {
    return error;
  }
  throw new Error(`no failure: ${JSON.stringify(value)}`);
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
