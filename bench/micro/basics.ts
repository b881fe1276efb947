import { readI64 } from '../../src/bytes/big-endian.ts'
import { crc32c, crc32cByTables, crc32cTier } from '../../src/bytes/crc32c.ts'
import { Ring } from '../../src/bytes/ring.ts'
import { measure, measureAsync, type Measurement } from './measure.ts'

/** STYLE §7: offsets, object shapes, looking up a partition, queues, checksums. */
export function measureBasics(): Measurement[] {
  return [...offsets(), ...shapes(), ...lookups(), ...queues(), ...checksums()]
}

function offsets(): Measurement[] {
  const group = 'read a 64-bit offset'
  const bytes = Buffer.alloc(8 * 64)
  for (let index = 0; index < 64; index++)
    bytes.writeBigInt64BE(BigInt(index) * 2n ** 36n, index * 8)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  return [
    measure(group, 'BigInt by Buffer', (times) => {
      let sum = 0
      for (let done = 0; done < times; done++) sum += Number(bytes.readBigInt64BE((done & 63) << 3))
      return sum
    }),
    measure(group, 'two u32 by DataView', (times) => {
      let sum = 0
      for (let done = 0; done < times; done++) {
        const at = (done & 63) << 3
        sum += view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4)
      }
      return sum
    }),
    measure(group, 'readI64, byte by byte', (times) => {
      let sum = 0
      for (let done = 0; done < times; done++) sum += readI64(bytes, (done & 63) << 3)
      return sum
    }),
  ]
}

interface Shaped {
  readonly offset: number
  readonly key: number
  readonly value: number
}

function shapes(): Measurement[] {
  const group = 'read three fields of an object'
  const one: Shaped[] = []
  const six: Shaped[] = []
  const order: ((n: number) => Shaped)[] = [
    (n) => ({ offset: n, key: n, value: n }),
    (n) => ({ key: n, offset: n, value: n }),
    (n) => ({ value: n, key: n, offset: n }),
    (n) => ({ offset: n, value: n, key: n }),
    (n) => ({ key: n, value: n, offset: n }),
    (n) => ({ value: n, offset: n, key: n }),
  ]
  for (let index = 0; index < 64; index++) {
    one.push({ offset: index, key: index, value: index })
    const make = order[index % order.length]
    if (make !== undefined) six.push(make(index))
  }
  // Two functions, for what V8 learns about the place of access is the point.
  return [
    measure(group, 'six shapes', (times) => {
      let sum = 0
      for (let done = 0; done < times; done++) {
        const each = six[done & 63]!
        sum += each.offset + each.key + each.value
      }
      return sum
    }),
    measure(group, 'one shape', (times) => {
      let sum = 0
      for (let done = 0; done < times; done++) {
        const each = one[done & 63]!
        sum += each.offset + each.key + each.value
      }
      return sum
    }),
  ]
}

function lookups(): Measurement[] {
  const group = 'look up a partition'
  const names = Array.from({ length: 100 }, (_, index) => `topic-${index}`)
  const flat = new Map<string, number>()
  const nested = new Map<string, number[]>()
  for (const name of names) {
    const partitions = Array.from({ length: 64 }, (_, index) => index)
    nested.set(name, partitions)
    for (const partition of partitions) flat.set(`${name}-${partition}`, partition)
  }
  return [
    measure(group, 'map keyed by topic-partition', (times) => {
      let sum = 0
      for (let done = 0; done < times; done++) {
        sum += flat.get(`${names[done % 100] ?? ''}-${done & 63}`) ?? 0
      }
      return sum
    }),
    measure(group, 'map of topics, then an array', (times) => {
      let sum = 0
      for (let done = 0; done < times; done++) {
        sum += nested.get(names[done % 100] ?? '')?.[done & 63] ?? 0
      }
      return sum
    }),
  ]
}

function queues(): Measurement[] {
  const group = 'push and shift, 100 000 waiting'
  const waiting = 100_000
  const array = Array.from({ length: waiting }, (_, index) => index)
  const ring = new Ring<number>(waiting)
  for (let index = 0; index < waiting; index++) ring.push(index)
  const run =
    (queue: { push(item: number): unknown; shift(): number | undefined }) =>
    (times: number): number => {
      let sum = 0
      for (let done = 0; done < times; done++) {
        queue.push(done)
        sum += queue.shift() ?? 0
      }
      return sum
    }
  return [measure(group, 'array', run(array)), measure(group, 'ring', run(ring))]
}

function checksums(): Measurement[] {
  const group = `crc-32c (this process: ${crc32cTier})`
  return [64, 256, 512, 1024, 65_536, 1 << 20].flatMap((size) => {
    const bytes = Buffer.alloc(size + 21, 'some bytes ')
    const run =
      (checksum: typeof crc32c) =>
      (times: number): number => {
        let sum = 0
        for (let done = 0; done < times; done++) sum += checksum(bytes, 21, bytes.length)
        return sum
      }
    return [
      measure(group, `${size} bytes`, run(crc32c), size),
      measure(group, `${size} bytes, tables only`, run(crc32cByTables), size),
    ]
  })
}

/** STYLE §7: what handing over a record costs when it is awaited alone, and when a thousand come at once. */
export async function measureHandOver(): Promise<Measurement[]> {
  const group = 'hand over a record'
  const size = 1000
  const total = 200_000
  async function* one(): AsyncGenerator<number, void, undefined> {
    for (let index = 0; index < total; index++) yield index
  }
  async function* many(): AsyncGenerator<readonly number[], void, undefined> {
    const batch = Array.from({ length: size }, (_, index) => index)
    for (let index = 0; index < total; index += size) yield batch
  }
  return [
    await measureAsync(group, 'for await, one by one', total, async () => {
      let sum = 0
      for await (const each of one()) sum += each
      return sum
    }),
    await measureAsync(group, 'for await, a thousand at a time', total, async () => {
      let sum = 0
      for await (const batch of many()) for (const each of batch) sum += each
      return sum
    }),
  ]
}
