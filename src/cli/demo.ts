import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { showGroups } from './demo-groups.ts'
import { showLog } from './demo-log.ts'
import { DemoBroker, Narrator } from './demo-parts.ts'
import { showQueues } from './demo-queues.ts'
import type { CliIo } from './io.ts'
import { EXIT_DONE, Interrupt } from './io.ts'

export type DemoScene = 'log' | 'groups' | 'queues'

export interface DemoOptions {
  /** Without the pauses that let people read. */
  readonly fast: boolean
}

type PlayScene = (
  show: Narrator,
  broker: DemoBroker,
  directory: string,
  signal: AbortSignal,
) => Promise<number>

const SCENES: Readonly<Record<DemoScene, { readonly title: string; readonly play: PlayScene }>> = {
  log: { title: 'The log: what was acknowledged is there.', play: showLog },
  groups: { title: 'Groups: consumers that share the work.', play: showGroups },
  queues: { title: 'Queues: work that is done, retried, or kept for later.', play: showQueues },
}

/**
 * Shows the point, in scenes of some twenty seconds, each on a broker of its own in a temporary folder. Each checks what it shows: resolves to 0 only
 * if all of it holds.
 */
export async function demo(
  io: CliIo,
  scenes: readonly DemoScene[],
  options: DemoOptions,
): Promise<number> {
  using interrupt = new Interrupt(io)
  const show = new Narrator(io, options.fast, interrupt.signal)
  for (const scene of scenes) {
    const { title, play } = SCENES[scene]
    if (scenes.length > 1) show.title(title)
    const code = await playScene(show, play, interrupt)
    if (code !== EXIT_DONE) return code
  }
  return show.success()
}

async function playScene(show: Narrator, play: PlayScene, interrupt: Interrupt): Promise<number> {
  const directory = await mkdtemp(join(tmpdir(), 'millrace-demo-'))
  const broker = new DemoBroker(directory)
  const kill = (): void => broker.kill()
  interrupt.signal.addEventListener('abort', kill, { once: true })
  try {
    const code = await play(show, broker, directory, interrupt.signal)
    return interrupt.received === undefined ? code : interrupt.exitCode
  } catch (error) {
    if (interrupt.received !== undefined) return interrupt.exitCode
    throw error
  } finally {
    interrupt.signal.removeEventListener('abort', kill)
    broker.kill()
    await broker.ended()
    await rm(directory, { recursive: true, force: true })
  }
}
