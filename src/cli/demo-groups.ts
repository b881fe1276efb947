import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { createInterface } from 'node:readline'
import { MAIN, codeOf, demoEnvironment, showCommand, wait } from './demo-parts.ts'
import type { DemoBroker, Narrator } from './demo-parts.ts'
import { EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED } from './io.ts'
import { formatPartitions } from './partition-names.ts'
import { formatCount } from './progress-line.ts'
import { formatAge } from './time-format.ts'
import { ExitError } from './usage-error.ts'
import { connect, text, topic } from '../client/index.ts'
import type { Client, GroupDetails } from '../client/index.ts'

const PARTITIONS = 6
const RECORDS_PER_TICK = 20
const TICK_MS = 20
const SESSION_TIMEOUT_MS = 6_000
/** A killed member's partitions are somebody else's by then. */
const TAKEOVER_MS = SESSION_TIMEOUT_MS + 2_000
/** How long anything may take to happen before the demo says that it does not. */
const PATIENCE_MS = 15_000
const POLL_MS = 50
const LAG_EVERY_MS = 1_500
/** Its steps take their own time: shorter than the pauses of the other scene. */
const SHORT_PAUSE_MS = 1_300
const GROUP = 'billing'
const NAMES = ['A', 'B', 'C'] as const
const clicks = topic('clicks', { value: text })

/**
 * The scene of the groups: a producer that never stops, three consumers in processes of their own that join one after the other, kill -9 for one of
 * them, its partitions taken over, and a reset with a dry run. Every record is printed by some consumer at least once, or this does not resolve to 0.
 */
export async function showGroups(
  show: Narrator,
  broker: DemoBroker,
  _directory: string,
  signal: AbortSignal,
): Promise<number> {
  const address = await broker.start('127.0.0.1:0')
  await using client = await connect({ url: address, clientId: 'demo', timeoutMs: 10_000 })
  await client.admin.createTopic(clicks.name, { partitions: PARTITIONS })
  const scene = new GroupScene(show, client, address, signal)
  try {
    return await scene.play()
  } finally {
    await scene.end()
  }
}

class GroupScene {
  readonly #show: Narrator
  readonly #client: Client
  readonly #address: string
  readonly #signal: AbortSignal
  readonly #members: DemoMember[] = []
  /** What has been printed by anybody, by partition. */
  readonly #printed: Printed = new Printed()
  readonly #producing = new AbortController()
  #produced: Promise<number> = Promise.resolve(0)

  constructor(show: Narrator, client: Client, address: string, signal: AbortSignal) {
    this.#show = show
    this.#client = client
    this.#address = address
    this.#signal = signal
  }

  async play(): Promise<number> {
    const show = this.#show
    const rate = (RECORDS_PER_TICK * 1000) / TICK_MS
    await show.step(
      `A topic with ${PARTITIONS} partitions, and a producer that sends ${formatCount(rate)} records a second all the time. A consumer starts.`,
    )
    this.#produced = this.#produce()
    // Looked at in the end; until then its failure must not end the process.
    this.#produced.catch(() => undefined)
    show.line(`millrace tail ${clicks.name} -g ${GROUP}`)
    let problem = await this.#join([PARTITIONS], 0)
    if (problem !== undefined) return show.failure(problem)

    await show.step(
      'Two more join, each a process of its own. Only the partitions that move stop, and only until they are committed.',
      SHORT_PAUSE_MS,
    )
    problem = (await this.#join([3, 3], 3)) ?? (await this.#join([2, 2, 2], 2))
    if (problem !== undefined) return show.failure(problem)

    await show.step(
      `kill -9 for C. It says no goodbye: its partitions wait until its session has run out (${formatAge(SESSION_TIMEOUT_MS)} here, 45s by default).`,
      SHORT_PAUSE_MS,
    )
    problem = await this.#kill(2)
    if (problem !== undefined) return show.failure(problem)

    await show.step(
      'The producer stops, the rest is read, and A and B get a Ctrl-C: they commit and leave.',
    )
    problem = await this.#finish()
    if (problem !== undefined) return show.failure(problem)

    await show.step(
      'Once more from the start? A reset shows what it would do before it does it.',
      SHORT_PAUSE_MS,
    )
    problem = await this.#reset()
    return problem === undefined ? EXIT_DONE : show.failure(problem)
  }

  async end(): Promise<void> {
    this.#producing.abort()
    for (const member of this.#members) member.kill('SIGKILL')
    await Promise.allSettled([this.#produced, ...this.#members.map((member) => member.ended)])
  }

  /** Sends at a steady rate until told to stop. Resolves to how many are on disk. */
  async #produce(): Promise<number> {
    const producer = this.#client.producer()
    let count = 0
    const startedMs = performance.now()
    while (!this.#producing.signal.aborted && !this.#signal.aborted) {
      const due = Math.floor(((performance.now() - startedMs) / TICK_MS) * RECORDS_PER_TICK)
      for (; count < due; count++) {
        producer.post(clicks, { value: `click ${count}`, partition: count % PARTITIONS })
      }
      await wait(TICK_MS)
    }
    await producer.close()
    return count
  }

  /** Starts a member and waits until partitions are shared as they should be; `moves` of them from those who had them before. */
  async #join(shares: readonly number[], moves: number): Promise<string | undefined> {
    const before = ownersOf(await this.#find())
    const known = new Set(this.#members.map(({ memberId }) => memberId))
    const member = new DemoMember(NAMES[this.#members.length] ?? '?', this.#address, this.#printed)
    this.#members.push(member)
    const startedMs = performance.now()
    const group = await this.#until(`${member.name} has its share`, (details) => {
      const joined = details?.members.find(({ memberId }) => !known.has(memberId))
      if (details === undefined || joined === undefined) return false
      member.memberId = joined.memberId
      return details.state === 'stable' && this.#sharesOf(details) === shares.join()
    })
    const after = ownersOf(group)
    const moved = [...before].filter(([partition, owner]) => after.get(partition) !== owner).length
    this.#showOwners(
      group,
      `${member.name} joined in ${Math.round(performance.now() - startedMs)} ms, its start included` +
        (this.#members.length === 1 ? '' : `; ${moved} of ${PARTITIONS} partitions moved`),
    )
    if (moved !== moves) return `${moves} partitions had to move, not ${moved}`
    const { count } = member
    await this.#until(`${member.name} reads`, () => member.count > count)
    return undefined
  }

  async #kill(index: number): Promise<string | undefined> {
    const show = this.#show
    const victim = this.#members[index]
    if (victim === undefined) return 'there is nobody to kill'
    const before = await this.#find()
    const orphans = [...ownersOf(before)]
      .filter(([, owner]) => owner === victim.memberId)
      .map(([partition]) => partition)
    victim.kill('SIGKILL')
    const killedMs = performance.now()
    let nextMs = killedMs
    const after = await this.#until('others take over', (details) => {
      const nowMs = performance.now()
      const owners = ownersOf(details)
      const done = orphans.every((partition) => {
        const owner = owners.get(partition)
        return owner !== undefined && owner !== victim.memberId
      })
      if (details !== undefined && (nowMs >= nextMs || done)) {
        nextMs += LAG_EVERY_MS
        const after = formatAge(Math.floor((nowMs - killedMs) / 100) * 100).padStart(5)
        const what = done ? `clicks/${formatPartitions(orphans)} taken over, lag` : 'lag'
        show.line(`after ${after}: ${what} ${formatCount(details.lag)} records${behind(details)}`)
      }
      return done
    })
    const tookMs = performance.now() - killedMs
    if (tookMs > TAKEOVER_MS) return `the takeover took ${Math.round(tookMs)} ms`
    this.#showOwners(after, 'A and B have what C had, and go on where C has committed')
    await this.#until('they catch up', (details) => (details?.lag ?? Infinity) < 1_000)
    const now = await this.#find()
    show.line(`caught up: lag ${formatCount(now?.lag ?? 0)} records`)
    return undefined
  }

  async #finish(): Promise<string | undefined> {
    const show = this.#show
    this.#producing.abort()
    const produced = await this.#produced
    await this.#until('the group reads to the end', (details) => details?.lag === 0)
    const living = this.#members.filter((member) => member.isAlive)
    for (const member of living) member.kill('SIGINT')
    for (const member of living) {
      const code = await member.ended
      if (code !== EXIT_INTERRUPTED) return `${member.name} ended with code ${code}: ${member.err}`
    }
    const group = await this.#find()
    if (group?.state !== 'empty') return `the group is ${group?.state ?? 'gone'}`
    const ends = await this.#client.admin.offsets(clicks.name, 'end')
    const problem = this.#printed.check(ends)
    if (problem !== undefined) return problem
    const total = [...ends.values()].reduce((sum, end) => sum + end, 0)
    if (total !== produced) return `${produced} were sent, ${total} are there`
    const [a, b, c] = this.#members.map(({ name, count }) => `${name} ${formatCount(count)}`)
    show.line(`${formatCount(produced)} records sent; printed by ${a}, ${b}, ${c}`)
    const { repeats } = this.#printed
    show.line(
      repeats === 0
        ? 'every one at least once; none twice, for C had committed all that it printed'
        : `every one at least once; ${formatCount(repeats)} twice: those that C had printed and not yet committed`,
    )
    return undefined
  }

  async #reset(): Promise<string | undefined> {
    const before = await this.#client.admin.groupOffsets(GROUP)
    const dry = await this.#run('--dry-run')
    if (dry !== EXIT_DONE) return `the dry run ended with code ${dry}`
    const after = await this.#client.admin.groupOffsets(GROUP)
    if (JSON.stringify(before) !== JSON.stringify(after)) return 'a dry run has changed offsets'
    const done = await this.#run('--yes', 1)
    if (done !== EXIT_DONE) return `the reset ended with code ${done}`
    const again = new Printed()
    const member = new DemoMember('A', this.#address, again, ['--no-follow'])
    this.#members.push(member)
    const code = await member.ended
    if (code !== EXIT_DONE) return `the new consumer ended with code ${code}: ${member.err}`
    const problem = again.check(await this.#client.admin.offsets(clicks.name, 'end'))
    if (problem !== undefined) return problem
    if (again.repeats > 0) return `${again.repeats} records came twice`
    this.#show.line(
      `millrace tail ${clicks.name} -g ${GROUP} --no-follow: ${formatCount(member.count)} records, all of them, once more`,
    )
    return undefined
  }

  async #run(flag: string, lines?: number): Promise<number | null> {
    const argv = ['group', 'reset', GROUP, '--to', 'start', flag]
    return (await showCommand(this.#show, this.#address, argv, { lines })).code
  }

  async #find(): Promise<GroupDetails | undefined> {
    for await (const { group } of this.#client.admin.groups()) {
      if (group === GROUP) return this.#client.admin.describeGroup(GROUP)
    }
    return undefined
  }

  /** Looks until it is so. @throws ExitError when it does not come to be so, or a consumer has ended by itself */
  async #until(
    what: string,
    isSo: (details: GroupDetails | undefined) => boolean,
  ): Promise<GroupDetails | undefined> {
    const deadlineMs = performance.now() + PATIENCE_MS
    for (;;) {
      const details = await this.#find()
      if (isSo(details)) return details
      if (this.#signal.aborted) throw new ExitError(EXIT_FAILED, 'interrupted')
      const broken = this.#members.find((member) => member.hasFailed)
      if (broken !== undefined) {
        throw new ExitError(EXIT_FAILED, `consumer ${broken.name} has ended: ${broken.err}`)
      }
      if (performance.now() > deadlineMs) {
        throw new ExitError(
          EXIT_FAILED,
          `this has not happened in ${formatAge(PATIENCE_MS)}: ${what}`,
        )
      }
      await wait(POLL_MS)
    }
  }

  /** `2,2,2`, the largest first. */
  #sharesOf(details: GroupDetails): string {
    const shares = details.members.map(({ owned }) => owned.length)
    return shares.sort((a, b) => b - a).join()
  }

  #showOwners(details: GroupDetails | undefined, what: string): void {
    const owned = this.#members.flatMap(({ name, memberId }) => {
      const found = details?.members.find((member) => member.memberId === memberId)
      if (found === undefined) return []
      return [`${name}: ${formatPartitions(found.owned.map(({ partition }) => partition))}`]
    })
    this.#show.line(`${owned.join('   ').padEnd(26)}  ${what}`)
  }
}

function behind(details: GroupDetails): string {
  const lagMs = Math.max(0, ...details.partitions.map((row) => row.lagMs ?? 0))
  return lagMs === 0 ? '' : `, the oldest waits for ${formatAge(lagMs)}`
}

function ownersOf(details: GroupDetails | undefined): Map<number, string> {
  const owners = new Map<number, string>()
  for (const member of details?.members ?? []) {
    for (const { partition } of member.owned) owners.set(partition, member.memberId)
  }
  return owners
}

/** Which offsets have been printed, whoever did it. */
class Printed {
  readonly #offsets = Array.from({ length: PARTITIONS }, () => new Set<number>())
  repeats = 0

  note(partition: number, offset: number): void {
    const offsets = this.#offsets[partition]
    if (offsets === undefined || offsets.has(offset)) this.repeats++
    else offsets.add(offset)
  }

  /** Everything below the ends, and nothing else? */
  check(ends: ReadonlyMap<number, number>): string | undefined {
    for (const [partition, end] of ends) {
      const offsets = this.#offsets[partition]
      for (let offset = 0; offset < end; offset++) {
        if (offsets?.has(offset) !== true) {
          return `nobody has printed offset ${offset} of clicks-${partition}, of ${end}`
        }
      }
      if (offsets?.size !== end) return `clicks-${partition} ends at ${end}, and more was printed`
    }
    return undefined
  }
}

/** `millrace tail -g` in a process of its own. */
class DemoMember {
  readonly name: string
  readonly ended: Promise<number | null>
  readonly #child: ChildProcess
  #killed = false
  #code: number | null | undefined
  memberId = ''
  count = 0
  err = ''

  constructor(name: string, address: string, printed: Printed, more: readonly string[] = []) {
    this.name = name
    const argv = ['tail', clicks.name, '-g', GROUP, '-f', '%p %o\\n', '--server', address]
    const child = spawn(
      process.execPath,
      [MAIN, ...argv, '--session-timeout', `${SESSION_TIMEOUT_MS}ms`, ...more],
      { stdio: ['ignore', 'pipe', 'pipe'], env: demoEnvironment() },
    )
    this.#child = child
    child.stderr.on('data', (piece: Buffer) => {
      this.err = (this.err + piece.toString()).slice(-2_000)
    })
    createInterface({ input: child.stdout }).on('line', (line) => {
      const [partition = '', offset = ''] = line.split(' ')
      // A line that a kill has cut short is no record.
      if (!/^\d+ \d+$/.test(line)) return
      this.count++
      printed.note(Number(partition), Number(offset))
    })
    this.ended = codeOf(child).then((code) => {
      this.#code = code
      return code
    })
  }

  get isAlive(): boolean {
    return this.#code === undefined
  }

  /** It has ended, and nobody told it to. */
  get hasFailed(): boolean {
    return !this.isAlive && !this.#killed && this.#code !== EXIT_DONE
  }

  kill(signal: NodeJS.Signals): void {
    this.#killed = true
    this.#child.kill(signal)
  }
}
