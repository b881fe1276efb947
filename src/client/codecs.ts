import { TextDecoder } from 'node:util'
import { MillraceError } from './errors.ts'

/** Turns values into bytes and back. Both directions may throw: the record is then refused with INVALID_RECORD. */
export interface Codec<T> {
  encode(value: T): Uint8Array
  decode(bytes: Uint8Array): T
}

/** A typed name. No connection needed, so one module can export it for producers, consumers and workers. */
export interface Topic<V, K = string> {
  readonly name: string
  readonly value: Codec<V>
  readonly key: Codec<K>
}

// A byte order mark is part of the text: what was sent must come back.
const decoder: TextDecoder = new TextDecoder('utf-8', { ignoreBOM: true })

/**
 * Codecs that go by way of a string. The producer hands their strings to the batch builder, which writes them as UTF-8 straight
 * into the batch: no buffer per record. A side table, so that `Codec` stays the two functions that users write.
 */
const textEncoders: WeakMap<object, (value: never) => string> = new WeakMap()

/** The codec's way to a string, if it is one of ours that has one. */
export function findTextEncoder<T>(codec: Codec<T>): ((value: T) => string) | undefined {
  return textEncoders.get(codec) as ((value: T) => string) | undefined // Registered below with the codec's own type.
}

function textual<T>(toText: (value: T) => string, decode: (bytes: Uint8Array) => T): Codec<T> {
  const codec: Codec<T> = { encode: (value) => Buffer.from(toText(value), 'utf8'), decode }
  textEncoders.set(codec, toText)
  return codec
}

/** UTF-8. Bytes that are no UTF-8 decode with U+FFFD in their place: use {@link bytes} where that matters. */
export const text: Codec<string> = textual(
  (value) => value,
  (bytes) => decoder.decode(bytes),
)

/** The bytes themselves. What is read is a view into the batch: copy it to keep it for long, since it keeps the whole batch alive. */
export const bytes: Codec<Uint8Array> = { encode: (value) => value, decode: (value) => value }

/**
 * JSON. `check` sees every decoded value and returns it typed, or throws; without it the type is the caller's word.
 * Encoding refuses what JSON cannot say (`undefined`, functions, BigInt, cycles) with INVALID_RECORD.
 */
export function json<T>(check?: (value: unknown) => T): Codec<T> {
  return textual<T>(
    (value) => {
      const encoded = JSON.stringify(value) as string | undefined // The lib's type leaves out undefined.
      if (encoded === undefined) {
        throw new MillraceError('INVALID_RECORD', `a value of type ${typeof value} is not JSON`)
      }
      return encoded
    },
    (bytes) => {
      const value: unknown = JSON.parse(decoder.decode(bytes))
      return check === undefined ? (value as T) : check(value) // Without a check the type is the caller's word.
    },
  )
}

/** Makes a typed handle. Keys are text unless a codec says otherwise. */
export function topic<V, K = string>(
  name: string,
  codecs: { readonly value: Codec<V>; readonly key?: Codec<K> },
): Topic<V, K> {
  // Without a key codec K has its default, string, or the caller has said otherwise against the evidence.
  return { name, value: codecs.value, key: codecs.key ?? (text as unknown as Codec<K>) }
}
