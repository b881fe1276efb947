import type { Command } from 'commander'
import { Option } from 'commander'
import { toChoice } from './arguments.ts'

/** Keeps the exit code of the command that ran. */
export interface Outcome {
  code: number
}

const OUTPUTS = ['text', 'json'] as const

export function withServer(command: Command): Command {
  return command.option(
    '-s, --server <host:port>',
    'the broker; else MILLRACE_SERVER, else localhost:9292',
  )
}

export function withOutput(command: Command): Command {
  return command.addOption(
    new Option('--format <format>', 'text or json')
      .default('text')
      // What other tools call it.
      .argParser((text) => (text === 'table' ? 'text' : toChoice('--format', OUTPUTS)(text))),
  )
}

export function asAdmin(command: Command): Command {
  return withOutput(withServer(command))
}
