import { toPairs, toPosition } from './arguments.ts'
import { isConfirmed } from './confirm.ts'
import type { CliIo } from './io.ts'
import { EXIT_DONE, EXIT_FAILED } from './io.ts'
import { formatCount } from './progress-line.ts'
import type { ServerOptions } from './session.ts'
import { withClient } from './session.ts'
import { formatTable } from './text-table.ts'
import { formatIso } from './time-format.ts'
import { UsageError } from './usage-error.ts'
import { parsePosition } from '../client/index.ts'
import type { ConfigInfo, TopicInfo } from '../client/index.ts'
import { formatBytes } from '../common/units.ts'

export interface AdminOptions extends ServerOptions {
  readonly format: 'text' | 'json'
}

/** One JSON document, for programs; else the text. */
export function print(io: CliIo, options: AdminOptions, facts: unknown, text: string): void {
  io.stdout.write(options.format === 'json' ? `${JSON.stringify(facts)}\n` : text)
}

export interface CreateOptions extends AdminOptions {
  readonly partitions?: number | undefined
  readonly config: readonly string[]
  readonly ifNotExists: boolean
  readonly dryRun: boolean
}

export function createTopics(
  io: CliIo,
  names: readonly string[],
  options: CreateOptions,
): Promise<number> {
  const config = Object.fromEntries(toPairs('--config', options.config))
  return withClient(io, options, async ({ admin }) => {
    for (const topic of names) {
      const { created, topicId, partitions } = await admin.createTopic(topic, {
        partitions: options.partitions,
        ifNotExists: options.ifNotExists,
        validateOnly: options.dryRun,
        config,
      })
      const done = options.dryRun ? 'could be created' : created ? 'created' : 'was there already'
      print(
        io,
        options,
        { topic, created: created && !options.dryRun, topicId, partitions, dryRun: options.dryRun },
        `topic ${topic} ${done} (partitions: ${partitions})\n`,
      )
    }
    return EXIT_DONE
  })
}

export interface ListOptions extends AdminOptions {
  readonly internal: boolean
  readonly match?: string | undefined
}

export function listTopics(io: CliIo, options: ListOptions): Promise<number> {
  const match = options.match === undefined ? undefined : toExpression('--match', options.match)
  return withClient(io, options, async ({ admin }) => {
    const topics: TopicInfo[] = []
    for await (const topic of admin.topics({ match, internal: options.internal })) {
      topics.push(topic)
    }
    const facts = topics.map(({ name, ...rest }) => ({ topic: name, ...rest }))
    const text = formatTable(
      [
        { name: 'TOPIC' },
        { name: 'PARTITIONS', align: 'right' },
        { name: 'RECORDS', align: 'right' },
        { name: 'BYTES', align: 'right' },
      ],
      topics.map((topic) => [
        topic.name,
        String(topic.partitions),
        formatCount(topic.records),
        formatBytes(topic.bytes),
      ]),
    )
    print(io, options, { topics: facts }, text)
    return EXIT_DONE
  })
}

/** @throws UsageError when the text is no regular expression */
export function toExpression(option: string, text: string): RegExp {
  try {
    return new RegExp(text, 'u')
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    throw new UsageError(`${option} ${text} is no regular expression: ${why}`)
  }
}

export function describeTopic(io: CliIo, name: string, options: AdminOptions): Promise<number> {
  return withClient(io, options, async ({ admin }) => {
    const { name: topic, createdAt, ...rest } = await admin.describeTopic(name)
    const partitions = formatTable(
      [
        { name: 'PARTITION', align: 'right' },
        { name: 'START', align: 'right' },
        { name: 'DURABLE END', align: 'right' },
        { name: 'END', align: 'right' },
        { name: 'BYTES', align: 'right' },
        { name: 'SEGMENTS', align: 'right' },
        { name: 'DAMAGED', align: 'left' },
      ],
      rest.partitions.map((partition) => [
        String(partition.partition),
        String(partition.logStartOffset),
        String(partition.highWatermark),
        String(partition.logEndOffset),
        formatBytes(partition.bytes),
        String(partition.segments),
        partition.damaged.map(({ start, end }) => `[${start}, ${end})`).join(' '),
      ]),
    )
    const text =
      `topic    ${topic}\nid       ${rest.topicId}\ncreated  ${formatIso(createdAt)}\n\n` +
      `${partitions}\n${configTable(rest.config)}`
    print(io, options, { topic, createdMs: createdAt, ...rest }, text)
    return EXIT_DONE
  })
}

function configTable(config: readonly ConfigInfo[]): string {
  return formatTable(
    [{ name: 'SETTING' }, { name: 'VALUE' }, { name: 'FROM' }, { name: 'ALLOWED' }],
    config.map((entry) => [
      entry.name,
      entry.value,
      entry.overridden ? 'topic' : 'default',
      entry.allowed,
    ]),
  )
}

export interface AlterOptions extends AdminOptions {
  readonly set: readonly string[]
  readonly clear: readonly string[]
  readonly partitions?: number | undefined
  readonly dryRun: boolean
}

export function alterTopic(io: CliIo, topic: string, options: AlterOptions): Promise<number> {
  if (options.set.length === 0 && options.clear.length === 0 && options.partitions === undefined) {
    throw new UsageError(
      'nothing to alter',
      'use --set name=value, --clear name or --partitions TOTAL',
    )
  }
  const set = Object.fromEntries(toPairs('--set', options.set))
  return withClient(io, options, async ({ admin }) => {
    const config = await admin.alterTopic(topic, {
      set,
      clear: options.clear,
      partitions: options.partitions,
      validateOnly: options.dryRun,
    })
    const done = options.dryRun ? 'could be altered' : 'altered'
    const changed = config.filter((entry) => entry.overridden)
    print(
      io,
      options,
      { topic, dryRun: options.dryRun, partitions: options.partitions, config },
      `topic ${topic} ${done}\n${changed.length === 0 ? '' : configTable(changed)}`,
    )
    return EXIT_DONE
  })
}

export interface DeleteOptions extends AdminOptions {
  readonly yes: boolean
}

export function deleteTopics(
  io: CliIo,
  names: readonly string[],
  options: DeleteOptions,
): Promise<number> {
  return withClient(io, options, async ({ admin }) => {
    if (!(await isConfirmed(io, `delete ${names.join(', ')} with all records?`, options.yes))) {
      return EXIT_FAILED
    }
    for (const topic of names) {
      await admin.deleteTopic(topic)
      print(io, options, { topic, deleted: true }, `topic ${topic} deleted\n`)
    }
    return EXIT_DONE
  })
}

export interface DeleteRecordsOptions extends AdminOptions {
  readonly before: string
  readonly partitions?: readonly number[] | undefined
  readonly yes: boolean
}

export function deleteRecords(
  io: CliIo,
  topic: string,
  options: DeleteRecordsOptions,
): Promise<number> {
  const before = toPosition(parsePosition(options.before, Date.now()))
  return withClient(io, options, async ({ admin }) => {
    const offsets = await admin.offsets(topic, before, { partitions: options.partitions })
    const question = `delete the records of ${topic} before ${options.before}?`
    if (!(await isConfirmed(io, question, options.yes))) return EXIT_FAILED
    const starts = await admin.deleteRecords(topic, offsets)
    const rows = [...starts].sort(([a], [b]) => a - b)
    const facts = rows.map(([partition, logStartOffset]) => ({ partition, logStartOffset }))
    const text = formatTable(
      [
        { name: 'PARTITION', align: 'right' },
        { name: 'START', align: 'right' },
      ],
      rows.map(([partition, start]) => [String(partition), String(start)]),
    )
    print(io, options, { topic, partitions: facts }, text)
    return EXIT_DONE
  })
}
