/**
 * Orders: many workers, one partition, and for each customer one thing after the other.
 *
 * With `order: 'key'` a queue group hands out one record of a key at a time, and the next one only when that is done, whichever worker has it and however
 * often it fails. Other keys go on meanwhile. So ten workers share one partition, and no customer's refund comes before the payment.
 *
 *   npm run examples orders
 */
import { connect, json, text, topic } from 'millrace'
import { check, exampleBroker, newName, sleep, untilSettled } from './support.ts'

const CUSTOMERS = 8
const EVENTS = 15
const WORKERS = 10

await using broker = await exampleBroker()
await using mill = await connect(broker.address)

const orders = topic(newName('orders'), { value: json<{ step: number }>(), key: text })
const group = newName('billing')
await mill.admin.createTopic(orders.name, { partitions: 1, config: { 'jobs.enable': 'true' } })

await using producer = mill.producer()
for (let step = 0; step < EVENTS; step++) {
  for (let customer = 0; customer < CUSTOMERS; customer++) {
    producer.post(orders, { key: `customer-${customer}`, value: { step } })
  }
}
await producer.flush()
console.log(`${EVENTS} events of each of ${CUSTOMERS} customers are in one partition`)

// ── What must hold ──
const done = new Map<string, number[]>()
const inHand = new Set<string>()
let mostAtOnce = 0
let failures = 0
const broken: string[] = []

const shares = Array.from({ length: WORKERS }, () => 0)
const workers = shares.map((_, index) =>
  mill.worker(
    orders,
    {
      group,
      order: 'key',
      attempts: 20,
      backoff: { type: 'fixed', delayMs: 20 },
      // Held, and not in hand, it would keep its customer waiting.
      prefetch: 0,
    },
    async ({ key = '', value }) => {
      const step = value?.step ?? -1
      if (inHand.has(key)) broken.push(`${key} was in two hands at once`)
      inHand.add(key)
      mostAtOnce = Math.max(mostAtOnce, inHand.size)
      try {
        await sleep(Math.random() * 10)
        // Every tenth try fails; the customer's next event waits until this one is through.
        if (Math.random() < 0.1) {
          failures++
          throw new Error('the payment provider does not answer')
        }
        const steps = done.get(key) ?? []
        if (step !== steps.length) broken.push(`${key}: ${step} came after ${steps.length - 1}`)
        done.set(key, [...steps, step])
        shares[index] = (shares[index] ?? 0) + 1
      } finally {
        inHand.delete(key)
      }
    },
  ),
)
await Promise.all(workers.map((worker) => worker.ready()))
await untilSettled(mill, group)
await Promise.all(workers.map((worker) => worker.close()))

console.log(`done by the workers: ${shares.join(', ')}; ${failures} tries failed`)
for (const line of broken.slice(0, 5)) console.log(`  ${line}`)
check(broken.length === 0, 'never two of a customer at once, never out of order')
check(
  done.size === CUSTOMERS && [...done.values()].every((steps) => steps.length === EVENTS),
  'all events of all customers are done',
)
check(mostAtOnce > 1, `up to ${mostAtOnce} customers were served at the same time`)
check(shares.filter((share) => share > 0).length > 1, 'the one partition was shared by workers')
