import { invariant } from './assert.ts'

/** A place in the log, counted in records. An integer in [0, 2^53). */
export type Offset = number & { readonly __brand: 'Offset' }

/** A place in a file, counted in bytes. An integer in [0, 2^53). */
export type Position = number & { readonly __brand: 'Position' }

/** @throws Error (broken invariant) when `value` is not an integer in [0, 2^53): check input before. */
export function toOffset(value: number): Offset {
  invariant(Number.isSafeInteger(value) && value >= 0, 'an offset is a non-negative safe integer')
  return value as Offset // The check above is what the brand stands for.
}

/** @throws Error (broken invariant) when `value` is not an integer in [0, 2^53). */
export function toPosition(value: number): Position {
  invariant(Number.isSafeInteger(value) && value >= 0, 'a position is a non-negative safe integer')
  return value as Position // The check above is what the brand stands for.
}

/** True for an integer in [0, 2^53), the numbers that may become an {@link Offset}. */
export function isOffset(value: unknown): value is Offset {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0
}
