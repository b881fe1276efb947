import { readFile } from 'node:fs/promises'
import type { CliIo } from './io.ts'
import { EXIT_DONE } from './io.ts'
import { formatTable } from './text-table.ts'
import type { AdminOptions } from './topics.ts'
import { print } from './topics.ts'
import { UsageError } from './usage-error.ts'
import { findSystemCode } from '../common/errors.ts'
import { explainConfig, parseConfig } from '../server/config.ts'
import type { ResolvedConfig } from '../server/config.ts'

/** Where settings may stand beside the environment: `--config FILE`, else MILLRACE_CONFIG. */
export async function resolveConfig(
  io: CliIo,
  flags: Readonly<Record<string, string | boolean | undefined>>,
  file: string | undefined,
): Promise<ResolvedConfig> {
  const fileName = file ?? io.env['MILLRACE_CONFIG']
  if (fileName === undefined || fileName === '') return parseConfig({ flags, environment: io.env })
  const fileText = await readFile(fileName, 'utf8').catch((error: unknown) => {
    throw new UsageError(
      `the settings file ${fileName} cannot be read: ${findSystemCode(error) ?? String(error)}`,
    )
  })
  return parseConfig({ flags, environment: io.env, fileText, fileName })
}

/** Every setting of `serve` with its value here, where that comes from, its default and its range. */
export async function listConfig(
  io: CliIo,
  options: AdminOptions & { readonly config?: string | undefined },
): Promise<number> {
  const settings = explainConfig(await resolveConfig(io, {}, options.config))
  const text = formatTable(
    [
      { name: 'SETTING' },
      { name: 'VALUE' },
      { name: 'FROM' },
      { name: 'DEFAULT' },
      { name: 'RANGE' },
      { name: 'WHAT' },
    ],
    settings.map((row) => [
      row.key,
      row.value,
      row.source,
      row.defaultText,
      row.range,
      row.description,
    ]),
  )
  const facts = settings.map(({ defaultText, ...rest }) => ({ ...rest, default: defaultText }))
  const howTo =
    '\nA setting is a flag of `serve` (--max-message-bytes), a variable (MILLRACE_MAX_MESSAGE_BYTES) or a key of the\n' +
    'settings file (maxMessageBytes; --config FILE or MILLRACE_CONFIG), in that order.\n' +
    'Topics have their own: `millrace topic describe NAME` lists them.\n'
  print(io, options, { settings: facts }, text + howTo)
  return EXIT_DONE
}
