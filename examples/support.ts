/**
 * What the examples share, and a program of your own does not need: a broker to talk to, and a word for what must hold. Yours begins with
 * `await connect()` while `npx millrace serve` runs in another terminal.
 */
import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Client } from 'millrace'

const START_PATIENCE_MS = 20_000
const SETTLE_PATIENCE_MS = 30_000
const POLL_MS = 50

export interface ExampleBroker extends AsyncDisposable {
  /** `host:port`. */
  readonly address: string
}

/** The broker that MILLRACE_SERVER names; else one in a temporary folder, for as long as the example runs. */
export async function exampleBroker(): Promise<ExampleBroker> {
  const named = process.env['MILLRACE_SERVER']
  if (named !== undefined && named !== '') {
    return { address: named, [Symbol.asyncDispose]: () => Promise.resolve() }
  }
  const folder = await mkdtemp(join(tmpdir(), 'millrace-example-'))
  const child = spawn(
    process.execPath,
    [await findCommand(), 'serve', '--data', folder, '--listen', '127.0.0.1:0'],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  )
  let log = ''
  child.stderr.on('data', (piece: Buffer) => {
    log = (log + piece.toString()).slice(-2_000)
  })
  const ended = once(child, 'close')
  const stop = async (): Promise<void> => {
    child.kill('SIGTERM')
    await ended
    await rm(folder, { recursive: true, force: true })
  }
  // Whatever ends this program ends its broker.
  process.once('exit', () => child.kill('SIGKILL'))
  try {
    const address = await within(
      START_PATIENCE_MS,
      'the broker starts',
      new Promise<string>((resolve, reject) => {
        child.on('error', reject)
        child.on('close', () => reject(new Error(`the broker has ended: ${log}`)))
        createInterface({ input: child.stdout }).on('line', (line) => {
          const found = /^millrace listening on (\S+)$/.exec(line)?.[1]
          if (found !== undefined) resolve(found)
        })
      }),
    )
    return { address, [Symbol.asyncDispose]: stop }
  } catch (error) {
    await stop()
    throw error
  }
}

/** What `npx millrace` runs. */
async function findCommand(): Promise<string> {
  const path = createRequire(import.meta.url).resolve('millrace/package.json')
  const manifest = JSON.parse(await readFile(path, 'utf8')) as { bin: { millrace: string } }
  return join(dirname(path), manifest.bin.millrace)
}

/** A name that no earlier run has used. */
export function newName(name: string): string {
  return `${name}-${randomUUID().slice(0, 8)}`
}

/** @throws Error unless it holds, which ends the example with 1 */
export function check(holds: boolean, what: string): void {
  if (!holds) throw new Error(`this does not hold: ${what}`)
  console.log(`  ✓ ${what}`)
}

/** Waits until a queue group has nothing ready, in hand, to be retried, or on its way to the dead letters. */
export async function untilSettled(client: Client, group: string): Promise<void> {
  const deadlineMs = Date.now() + SETTLE_PATIENCE_MS
  for (;;) {
    const { topics } = await client.admin.describeQueue(group)
    const open = topics
      .flatMap(({ partitions }) => partitions)
      .reduce((sum, row) => sum + row.ready + row.acquired + row.parked + row.deadLettering, 0)
    if (open === 0 && topics.length > 0) return
    if (Date.now() > deadlineMs) throw new Error(`${open} records of ${group} are not settled`)
    await sleep(POLL_MS)
  }
}

/** Waits for a condition. */
export async function until(what: string, isTrue: () => boolean): Promise<void> {
  const deadlineMs = Date.now() + SETTLE_PATIENCE_MS
  while (!isTrue()) {
    if (Date.now() > deadlineMs) throw new Error(`this takes too long: ${what}`)
    await sleep(POLL_MS)
  }
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms)
  })
}

async function within<T>(ms: number, what: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const patience = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`this takes too long: ${what}`)), ms)
  })
  try {
    return await Promise.race([promise, patience])
  } finally {
    clearTimeout(timer)
  }
}
