/**
 * A reminder: records in the future.
 *
 * A record with `delayMs` or `deliverAt` waits in the broker, on its disk, and is appended to its topic when it is due: up to 400 days ahead, through any
 * restart, never early, and exactly once. Until then it has no offset but a delay id, by which it can be cancelled, moved, or fired at once.
 *
 *   npm run examples reminder
 */
import { MillraceError, connect, json, topic } from 'millrace'
import { check, exampleBroker, newName, until } from './support.ts'

interface Reminder {
  readonly cart: string
  /** When it is meant to come, milliseconds since the epoch. */
  readonly dueMs: number
}

await using broker = await exampleBroker()
await using mill = await connect(broker.address)

const reminders = topic(newName('reminders'), { value: json<Reminder>() })
const group = newName('reminder')
await mill.admin.createTopic(reminders.name, { partitions: 1, config: { 'jobs.enable': 'true' } })

const received: { readonly cart: string; readonly lateMs: number }[] = []
await using worker = mill.worker(reminders, { group }, ({ value }) => {
  if (value === null) return
  const lateMs = Date.now() - value.dueMs
  console.log(`  reminder of ${value.cart}, ${lateMs} ms after its time`)
  received.push({ cart: value.cart, lateMs })
})
await worker.ready()

// ── Three reminders: one is kept, one cancelled, one moved ──
await using producer = mill.producer()
async function remind(cart: string, delayMs: number): Promise<string> {
  const deliverAt = new Date(Date.now() + delayMs)
  const receipt = await producer.send(reminders, {
    value: { cart, dueMs: deliverAt.getTime() },
    deliverAt,
  })
  const { delayId } = receipt
  if (delayId === undefined) throw new Error('it does not wait')
  console.log(`${cart} waits until ${deliverAt.toISOString()} as ${delayId}`)
  return delayId
}
await remind('cart-1', 1_500)
const paid = await remind('cart-2', 1_500)
const later = await remind('cart-3', 3_600_000)

const waiting: string[] = []
for await (const record of mill.admin.delayed({ topic: reminders.name })) {
  waiting.push(reminders.value.decode(record.record.value ?? new Uint8Array()).cart)
}
check(waiting.length === 3 && waiting[2] === 'cart-3', 'all three wait, the last one longest')

await mill.admin.cancelDelayed(paid)
console.log('cart-2 is paid for: its reminder is cancelled')
check((await mill.admin.countDelayed(reminders.name)) === 2, 'two are left')
await mill.admin.fireDelayed(later)
console.log('cart-3 does not wait any longer: its reminder is fired now')

await until('two reminders come', () => received.length >= 2)
const [first, second] = received
check(first?.cart === 'cart-3', 'the one that was fired came at once')
check(second?.cart === 'cart-1' && second.lateMs >= 0, 'the other one came, and not early')
check((second?.lateMs ?? Infinity) < 1_000, 'and within a second of its time')
check((await mill.admin.countDelayed(reminders.name)) === 0, 'nothing waits any more')

const outcome = await mill.admin.cancelDelayed(paid).then(
  () => 'cancelled',
  (error: unknown) => (error instanceof MillraceError ? error.code : String(error)),
)
check(outcome === 'ALREADY_FIRED', 'what has been cancelled cannot be cancelled again')
check(received.length === 2, 'and it has not come')
