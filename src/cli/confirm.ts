import { createInterface } from 'node:readline/promises'
import type { CliIo } from './io.ts'
import { say } from './io.ts'

/** True when there is somebody to ask. */
export function canAsk(io: CliIo): boolean {
  return io.stdin.isTTY === true && io.stderr.isTTY === true
}

/** Asks on stderr; anything but yes is no. Only where {@link canAsk}. */
export async function ask(io: CliIo, question: string): Promise<boolean> {
  const prompt = createInterface({ input: io.stdin, output: io.stderr })
  try {
    const answer = await prompt.question(`${question} [y/N] `)
    if (/^y(es)?$/i.test(answer.trim())) return true
    say(io, 'nothing was changed')
    return false
  } finally {
    prompt.close()
  }
}

/** Asks on a terminal only: a script has nobody to answer, and means what it says. */
export async function isConfirmed(io: CliIo, question: string, yes: boolean): Promise<boolean> {
  if (yes || !canAsk(io)) return true
  return ask(io, question)
}
