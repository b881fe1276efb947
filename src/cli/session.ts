import { connect } from '../client/index.ts'
import type { Client } from '../client/index.ts'
import type { CliIo } from './io.ts'

export interface ServerOptions {
  /** `HOST:PORT`. */
  readonly server?: string | undefined
  /** What the broker calls this program, for instance among the members of a group. */
  readonly clientId?: string | undefined
}

/** The client's own ten seconds are for programs that may start before their broker; a person wants to know. */
const PATIENCE_MS = 3_000

/**
 * Runs `work` with a client, which is closed after it. `--server`, else MILLRACE_SERVER, else localhost:9292.
 * @throws MillraceError UNREACHABLE
 */
export async function withClient<T>(
  io: CliIo,
  options: ServerOptions,
  work: (client: Client) => Promise<T>,
  timeoutMs: number = PATIENCE_MS,
): Promise<T> {
  const url = options.server ?? io.env['MILLRACE_SERVER']
  const client = await connect({
    ...(url === undefined || url === '' ? {} : { url: url.split(',') }),
    clientId: options.clientId ?? 'millrace-cli',
    timeoutMs,
  })
  try {
    return await work(client)
  } finally {
    await client.close()
  }
}
