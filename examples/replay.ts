/**
 * Replay: the same topic as a work queue and as a log, at the same time.
 *
 * Workers welcome everybody who signs up; a reader counts sign-ups by country. Nothing is copied between them, and nobody takes anything away from the
 * other: what workers have done is still there, so that a question that nobody thought of before can be answered tomorrow, from the first record on.
 *
 *   npm run examples replay
 */
import { connect, json, topic } from 'millrace'
import { check, exampleBroker, newName, untilSettled } from './support.ts'

interface SignUp {
  readonly id: number
  readonly country: string
  readonly referrer: string
}

const SIGN_UPS = 2_000
const COUNTRIES = ['DE', 'FR', 'JP', 'BR']
const REFERRERS = ['search', 'friend', 'talk']

await using broker = await exampleBroker()
await using mill = await connect(broker.address)

const signUps = topic(newName('sign-ups'), { value: json<SignUp>() })
const group = newName('welcome')
await mill.admin.createTopic(signUps.name, { partitions: 3, config: { 'jobs.enable': 'true' } })

// ── The workers and the reader start before there is anything ──
const welcomed = new Map<number, number>()
await using worker = mill.worker(signUps, { group, concurrency: 20 }, ({ value }) => {
  if (value === null) return
  // A few fail once. The reader does not notice: retries are this group's own affair.
  if (value.id % 100 === 0 && !welcomed.has(value.id)) {
    welcomed.set(value.id, 0)
    throw new Error('the printer is out of paper')
  }
  welcomed.set(value.id, (welcomed.get(value.id) ?? 0) + 1)
})
await worker.ready()

const byCountry = new Map<string, number>()
async function count(): Promise<void> {
  let seen = 0
  for await (const { value } of mill.read(signUps, { from: 'start', follow: true })) {
    const country = value?.country ?? '?'
    byCountry.set(country, (byCountry.get(country) ?? 0) + 1)
    if (++seen === SIGN_UPS) return
  }
}
const counting = count()

await using producer = mill.producer()
for (let id = 0; id < SIGN_UPS; id++) {
  const value = {
    id,
    country: COUNTRIES[id % COUNTRIES.length] ?? '',
    referrer: REFERRERS[id % REFERRERS.length] ?? '',
  }
  if (!producer.post(signUps, { value })) await producer.ready()
}
await producer.flush()
await Promise.all([counting, untilSettled(mill, group)])
console.log(`by country, as they came: ${JSON.stringify(Object.fromEntries(byCountry))}`)
check(
  [...byCountry.values()].every((number) => number === SIGN_UPS / COUNTRIES.length),
  'the reader has seen every sign-up once',
)
check(
  welcomed.size === SIGN_UPS && [...welcomed.values()].every((times) => times === 1),
  'the workers have welcomed everybody once, the retried ones included',
)

// ── The day after: a new question to old records ──
const byReferrer = new Map<string, number>()
for await (const { value } of mill.read(signUps, { from: 'start', until: 'end' })) {
  const referrer = value?.referrer ?? '?'
  byReferrer.set(referrer, (byReferrer.get(referrer) ?? 0) + 1)
}
console.log(`by referrer, from the start: ${JSON.stringify(Object.fromEntries(byReferrer))}`)
const total = [...byReferrer.values()].reduce((sum, number) => sum + number, 0)
check(total === SIGN_UPS, 'all of them are still there after they were worked on')
check(byReferrer.get('search') === Math.ceil(SIGN_UPS / REFERRERS.length), 'and add up')
