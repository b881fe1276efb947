import { BufferPool } from '../bytes/buffer-pool.ts'
import type { Acks } from '../common/acks.ts'
import { KIB, MIB } from '../common/units.ts'
import { isCompressionAvailable } from '../record/compression.ts'
import type { Compression, ProducerOptions } from './api.ts'
import { MillraceError } from './errors.ts'

/** Batch buffers kept for the next batches: what six partitions have under way. */
const POOLED_BUFFERS = 32

export interface ProducerSettings {
  readonly acks: Acks
  readonly idempotent: boolean
  readonly compression: Compression
  readonly lingerMs: number
  readonly batchBytes: number
  readonly maxInFlight: number
  readonly pool: BufferPool
  readonly bufferBytes: number
  readonly deliveryTimeoutMs: number
  readonly partitioner: ProducerOptions['partitioner']
}

/** The options with their defaults. @throws MillraceError INVALID_REQUEST, UNSUPPORTED_CODEC */
export function toSettings(options: ProducerOptions): ProducerSettings {
  const acks = options.acks ?? 'durable'
  if (acks === 'none' && options.idempotent === true) {
    throw new MillraceError(
      'INVALID_REQUEST',
      'acks none cannot be idempotent: nothing is answered, so nothing is sent again',
      { field: 'idempotent' },
    )
  }
  const compression = options.compression ?? 'none'
  if (!isCompressionAvailable(compression)) {
    throw new MillraceError(
      'UNSUPPORTED_CODEC',
      `${compression} compression is not available in this process`,
      { compression },
    )
  }
  return {
    acks,
    idempotent: acks !== 'none' && (options.idempotent ?? true),
    compression,
    lingerMs: bounded('lingerMs', options.lingerMs ?? 5, 0, 60_000),
    batchBytes: bounded('batchBytes', options.batchBytes ?? 256 * KIB, KIB, 8 * MIB),
    maxInFlight: bounded('maxInFlight', options.maxInFlight ?? 5, 1, 5),
    pool: new BufferPool(POOLED_BUFFERS),
    bufferBytes: bounded('bufferBytes', options.bufferBytes ?? 32 * MIB, KIB, 2 ** 40),
    deliveryTimeoutMs: bounded(
      'deliveryTimeoutMs',
      options.deliveryTimeoutMs ?? 120_000,
      1,
      2 ** 40,
    ),
    partitioner: options.partitioner,
  }
}

function bounded(field: string, value: number, least: number, most: number): number {
  if (value >= least && value <= most) return value // False for NaN.
  throw new MillraceError(
    'INVALID_REQUEST',
    `${field} is ${value}: it must lie in [${least}, ${most}]`,
    { field, actual: value },
  )
}
