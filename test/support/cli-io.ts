import { EventEmitter } from 'node:events'
import { PassThrough, Readable } from 'node:stream'
import type { CliIo, TerminalStream } from '../../src/cli/io.ts'
import { run } from '../../src/cli/run.ts'

/** A command's world in memory: what it reads is given, what it writes is kept. */
export interface FakeIo extends CliIo {
  readonly signals: EventEmitter
  readonly exits: number[]
  out(): string
  outBytes(): Buffer
  err(): string
}

export interface FakeIoShape {
  readonly input?: string | Uint8Array | readonly Uint8Array[]
  /** Left open until the test ends it. */
  readonly stdin?: Readable
  readonly env?: Readonly<Record<string, string>>
  readonly terminal?: boolean
}

export function aFakeIo(shape: FakeIoShape = {}): FakeIo {
  const stdout = new PassThrough({ highWaterMark: 1 << 30 })
  const stderr = new PassThrough({ highWaterMark: 1 << 30 })
  const outPieces: Buffer[] = []
  const errPieces: Buffer[] = []
  // Copies: a command reuses its buffers as soon as a write has been taken.
  stdout.on('data', (piece: Buffer) => outPieces.push(Buffer.from(piece)))
  stderr.on('data', (piece: Buffer) => errPieces.push(Buffer.from(piece)))
  const { input = '' } = shape
  const pieces = typeof input === 'string' || input instanceof Uint8Array ? [input] : input
  const exits: number[] = []
  return {
    stdin:
      shape.stdin ??
      Readable.from(
        pieces.filter((piece) => piece.length > 0).map((piece) => Buffer.from(piece)),
        { objectMode: false },
      ),
    stdout: asTerminal(stdout, shape.terminal),
    stderr: asTerminal(stderr, shape.terminal),
    env: shape.env ?? {},
    signals: new EventEmitter(),
    exits,
    exitNow: (code) => exits.push(code),
    out: () => Buffer.concat(outPieces).toString('utf8'),
    outBytes: () => Buffer.concat(outPieces),
    err: () => Buffer.concat(errPieces).toString('utf8'),
  }
}

function asTerminal(stream: PassThrough, terminal = false): TerminalStream {
  return Object.assign(stream, terminal ? { isTTY: true, columns: 100 } : {})
}

export interface CommandResult {
  readonly code: number
  readonly out: string
  readonly outBytes: Buffer
  readonly err: string
}

/** Runs one command line to its end. */
export async function runCommand(
  argv: readonly string[],
  shape: FakeIoShape = {},
): Promise<CommandResult> {
  const io = aFakeIo(shape)
  const code = await run(argv, io)
  // What was written last is still on its way through the streams.
  await new Promise((resolve) => setImmediate(resolve))
  return { code, out: io.out(), outBytes: io.outBytes(), err: io.err() }
}
