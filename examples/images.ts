/**
 * Images: more workers than partitions, and handlers in threads.
 *
 * Sixty pictures wait in a topic with one partition. In a stream group one consumer would get them all; of a queue group four workers share them, record by
 * record. Each resizes in a thread, from a module that is named by URL, and what comes back goes to a topic of thumbnails: with the picture's name as
 * dedupe id, so that a picture that was done twice (its worker died before it could say so) is one thumbnail.
 *
 *   npm run examples images
 */
import { bytes, connect, text, topic } from 'millrace'
import { type Picture, decodePpm, encodePpm } from './images-resize.ts'
import { check, exampleBroker, newName, until, untilSettled } from './support.ts'

const PICTURES = 60
const WORKERS = 4

await using broker = await exampleBroker()
await using mill = await connect(broker.address)

// Bytes, as the thread gets them.
const pictures = topic(newName('pictures'), { value: bytes, key: bytes })
const thumbnails = topic(newName('thumbnails'), { value: bytes, key: text })
const group = newName('resizers')
await mill.admin.createTopic(pictures.name, { partitions: 1, config: { 'jobs.enable': 'true' } })
await mill.admin.createTopic(thumbnails.name, { partitions: 1 })

/** A picture of one colour, so that everybody can tell what its thumbnail has to look like. */
function paint(index: number): Picture {
  const [width, height] = [160 + (index % 7) * 16, 120 + (index % 5) * 24]
  const pixels = new Uint8Array(width * height * 3)
  for (let i = 0; i < pixels.length; i += 3) pixels.set([index, 2 * index, 255 - index], i)
  return { width, height, pixels }
}

await using producer = mill.producer()
for (let i = 0; i < PICTURES; i++) {
  const value = encodePpm(paint(i))
  const key = Buffer.from(`picture-${i}`)
  if (!producer.post(pictures, { key, value })) await producer.ready()
}
producer.post(pictures, {
  key: Buffer.from('notes.txt'),
  value: Buffer.from('this is no picture'),
})
await producer.flush()
console.log(`${PICTURES} pictures and a text file wait in one partition`)

// ── The workers. In real life each would be a process, on any machine ──
const shares = Array.from({ length: WORKERS }, () => 0)
let stored = 0
const failures: unknown[] = []
const workers = shares.map((_, index) => {
  const worker = mill.worker<Uint8Array, Uint8Array, Uint8Array>(
    pictures,
    // Nothing is held beyond the one in hand: a picture that waits here is one that others could resize.
    { group, concurrency: 1, threads: 1, prefetch: 0 },
    new URL(`./images-resize${import.meta.url.endsWith('.ts') ? '.ts' : '.js'}`, import.meta.url),
  )
  worker.on('completed', ({ job, result }) => {
    shares[index] = (shares[index] ?? 0) + 1
    const name = Buffer.from(job.key ?? []).toString()
    producer
      .send(thumbnails, { key: name, value: result, dedupeId: name })
      .then(() => stored++)
      .catch((error: unknown) => failures.push(error))
  })
  return worker
})
await Promise.all(workers.map((worker) => worker.ready()))
await untilSettled(mill, group)
await until('all thumbnails are stored', () => stored + failures.length >= PICTURES)
await Promise.all(workers.map((worker) => worker.close()))

console.log(`resized by the workers: ${shares.join(', ')}`)
check(failures.length === 0, 'all thumbnails are stored')
check(
  shares.every((share) => share > 0),
  'each of the four workers had its share of the one partition',
)

let count = 0
let isRight = true
for await (const { key, value } of mill.read(thumbnails, { until: 'end' })) {
  const { width, pixels } = decodePpm(value ?? new Uint8Array())
  const index = Number(key?.slice('picture-'.length))
  const colour = [index, 2 * index, 255 - index]
  isRight &&= width === 32 && pixels.every((part, i) => part === colour[i % 3])
  count++
}
check(count === PICTURES, `there are ${PICTURES} thumbnails, one for each picture`)
check(isRight, 'all are 32 pixels wide, and of the right colour')

const dead: string[] = []
for await (const letter of mill.admin.deadLetters({ group, topic: pictures.name })) {
  dead.push(`${letter.reason}: ${letter.error.message}`)
}
check(dead.join() === 'rejected: this is no PPM file', 'the text file is a dead letter')
