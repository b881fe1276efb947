import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { describe, expect, it, onTestFinished } from 'vitest'
import { MILLRACE_MAIN, ServerProcess } from '../support/server-process.ts'

/** What runs to its end, and what it says. */
interface ExampleRun {
  readonly code: number | null
  readonly out: string
  readonly err: string
}

/** Runs the built example as its reader would, without anything of this process's environment. */
async function runExample(
  name: string,
  environment: Readonly<Record<string, string>> = {},
): Promise<ExampleRun> {
  const file = fileURLToPath(new URL(`../../examples/${name}.js`, pathToFileURL(MILLRACE_MAIN)))
  expect(existsSync(file)).toBe(true)
  const child = spawn(process.execPath, [file], {
    env: { PATH: process.env['PATH'] ?? '', ...environment },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  onTestFinished(() => {
    child.kill('SIGKILL')
  })
  const out: Buffer[] = []
  const err: Buffer[] = []
  child.stdout.on('data', (piece: Buffer) => out.push(piece))
  child.stderr.on('data', (piece: Buffer) => err.push(piece))
  const [code] = (await once(child, 'close')) as unknown[]
  return {
    code: typeof code === 'number' ? code : null,
    out: Buffer.concat(out).toString('utf8'),
    err: Buffer.concat(err).toString('utf8'),
  }
}

/** Each line that says what holds, so that an example which checks nothing is no success. */
const EXAMPLES: Readonly<Record<string, readonly string[]>> = {
  emails: [
    'a second mail with the same dedupe id is recognized',
    'all that can be delivered is delivered',
    'the busy one came through, at the third try',
    'failures were tried again',
    'two are dead letters, once each',
    'one was rejected at its first try',
    'one was given up after three tries',
    'after the redrive all twenty are delivered',
    'none was delivered twice',
    'no dead letter is left to be dealt with',
  ],
  images: [
    'all thumbnails are stored',
    'each of the four workers had its share of the one partition',
    'there are 60 thumbnails, one for each picture',
    'all are 32 pixels wide, and of the right colour',
    'the text file is a dead letter',
  ],
  reminder: [
    'all three wait, the last one longest',
    'two are left',
    'the one that was fired came at once',
    'the other one came, and not early',
    'and within a second of its time',
    'nothing waits any more',
    'what has been cancelled cannot be cancelled again',
    'and it has not come',
  ],
  orders: [
    'never two of a customer at once, never out of order',
    'all events of all customers are done',
    'up to N customers were served at the same time',
    'the one partition was shared by workers',
  ],
  replay: [
    'the reader has seen every sign-up once',
    'the workers have welcomed everybody once, the retried ones included',
    'all of them are still there after they were worked on',
    'and add up',
  ],
}

function heldLines(out: string): readonly string[] {
  return out
    .split('\n')
    .filter((line) => line.startsWith('  ✓ '))
    .map((line) => line.slice(4).replace(/^up to \d+/, 'up to N'))
}

describe('the examples', () => {
  it.each(Object.keys(EXAMPLES))('%s holds what it shows, on a broker of its own', async (name) => {
    const { code, out, err } = await runExample(name)
    expect(err).toBe('')
    expect(heldLines(out)).toEqual(EXAMPLES[name])
    expect(code).toBe(0)
  })

  it('run again and again on the broker that MILLRACE_SERVER names', async () => {
    const server = await ServerProcess.start()
    for (const name of ['emails', 'orders', 'orders', 'emails']) {
      const { code, out } = await runExample(name, { MILLRACE_SERVER: server.address })
      expect(heldLines(out)).toEqual(EXAMPLES[name])
      expect(code).toBe(0)
    }
  })

  it('end with 1 and say why when there is no broker', async () => {
    const { code, err } = await runExample('emails', { MILLRACE_SERVER: '127.0.0.1:1' })
    expect(code).toBe(1)
    expect(err).toContain('UNREACHABLE')
  })
})
