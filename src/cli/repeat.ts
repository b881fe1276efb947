import type { CliIo } from './io.ts'
import { EXIT_DONE, Interrupt } from './io.ts'
import { formatIso } from './time-format.ts'

/** Dresses what is shown: over what the terminal shows already, or with the time before it. */
export type Dress = (text: string) => string

/** `--watch`: calls `look` again and again, so often, until interrupted or until nobody reads. Without a time: once. */
export async function repeat(
  io: CliIo,
  everyMs: number | undefined,
  look: (dress: Dress) => Promise<void>,
): Promise<number> {
  if (everyMs === undefined) {
    await look((text) => text)
    return EXIT_DONE
  }
  using interrupt = new Interrupt(io)
  // Nobody looks any more: `group describe NAME --watch | head`.
  io.stdout.once('error', () => interrupt.stop())
  io.stdout.once('close', () => interrupt.stop())
  const isTerminal = io.stdout.isTTY === true
  for (let times = 0; !interrupt.signal.aborted; times++) {
    await look((text) =>
      isTerminal ? overwrite(text) : `${times === 0 ? '' : '\n'}${formatIso(Date.now())}\n${text}`,
    )
    await waitFor(everyMs, interrupt.signal)
  }
  return interrupt.exitCode
}

/** Over what the terminal shows, without wiping it before, which would flicker. */
function overwrite(text: string): string {
  return `\u001b[H${text.replaceAll('\n', '\u001b[K\n')}\u001b[J`
}

/** Resolves after a time, or when the signal comes. */
export function waitFor(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) {
      resolve()
      return
    }
    const done = (): void => {
      clearTimeout(timer)
      signal.removeEventListener('abort', done)
      resolve()
    }
    const timer = setTimeout(done, ms)
    signal.addEventListener('abort', done, { once: true })
  })
}
