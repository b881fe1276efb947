#!/usr/bin/env node
import type { CliIo } from './io.ts'
import { run } from './run.ts'
import { findSystemCode } from '../common/errors.ts'

const io: CliIo = {
  stdin: process.stdin,
  stdout: process.stdout,
  stderr: process.stderr,
  env: process.env,
  signals: process,
  exitNow: (code) => process.exit(code),
}

// A reader that has gone away (`millrace topic list | head -1`) is no failure, wherever it is noticed.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error) => {
    if (findSystemCode(error) !== 'EPIPE') process.exitCode = 1
  })
}

const code = await run(process.argv.slice(2), io)
// What was written to a pipe that is read slowly must be out before the process ends.
await new Promise((resolve) => process.stdout.write('', resolve))
await new Promise((resolve) => process.stderr.write('', resolve))
process.exit(process.exitCode === 1 && code === 0 ? 1 : code)
