// Writes src/gen/ from proto/: `descriptor.ts`, the schema in two forms (JSON that proto-loader builds its codecs from, with camel-case
// fields; FileDescriptorProtos for server reflection, with the names as written), and `types.ts`, one interface per message.
//   node scripts/gen.mjs           writes
//   node scripts/gen.mjs --check   fails when what is there is stale
// No protoc, no network, only protobufjs, which comes with @grpc/proto-loader. Reflection gets descriptors of our own because those that
// proto-loader makes lose the field names as written, the file names and `optional`.
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

const rootPath = join(dirname(fileURLToPath(import.meta.url)), '..')
const protoPath = join(rootPath, 'proto')
const genPath = join(rootPath, 'src', 'gen')
const requireHere = createRequire(import.meta.url)
const requireFromLoader = createRequire(requireHere.resolve('@grpc/proto-loader'))
const protobuf = requireFromLoader('protobufjs')
const { FileDescriptorProto } = requireFromLoader('protobufjs/ext/descriptor')

const protoFiles = readdirSync(protoPath, { recursive: true })
  .map((name) => name.split('\\').join('/'))
  .filter((name) => name.endsWith('.proto'))
  .sort()

function loadRoot(keepCase) {
  const root = new protobuf.Root()
  root.resolvePath = (origin, target) =>
    target.startsWith(protoPath) ? target : join(protoPath, target)
  root.loadSync(protoFiles, { keepCase })
  return root.resolveAll()
}

// ---------------------------------------------------------------------------------------------------- descriptors for reflection

const LABEL_OPTIONAL = 1
const LABEL_REPEATED = 3
const SCALAR_TYPES = {
  double: 1,
  float: 2,
  int64: 3,
  uint64: 4,
  int32: 5,
  fixed64: 6,
  fixed32: 7,
  bool: 8,
  string: 9,
  bytes: 12,
  uint32: 13,
  sfixed32: 15,
  sfixed64: 16,
  sint32: 17,
  sint64: 18,
}
const TYPE_MESSAGE = 11
const TYPE_ENUM = 14

function toFileDescriptor(root, file) {
  const text = readFileSync(join(protoPath, file), 'utf8')
  const parsed = protobuf.parse(text, new protobuf.Root(), { keepCase: true })
  const own = root.lookup(parsed.package).nestedArray.filter((object) => {
    return relative(protoPath, object.filename).split('\\').join('/') === file
  })
  return {
    name: file,
    package: parsed.package,
    dependency: parsed.imports ?? [],
    messageType: own.filter((object) => object instanceof protobuf.Type).map(toMessage),
    enumType: own.filter((object) => object instanceof protobuf.Enum).map(toEnum),
    service: own.filter((object) => object instanceof protobuf.Service).map(toService),
    syntax: 'proto3',
  }
}

function toMessage(type) {
  return {
    name: type.name,
    field: type.fieldsArray.map((field) => toField(type, field)),
    nestedType: type.nestedArray.filter((o) => o instanceof protobuf.Type).map(toMessage),
    enumType: type.nestedArray.filter((o) => o instanceof protobuf.Enum).map(toEnum),
    oneofDecl: type.oneofsArray.map((oneof) => ({ name: oneof.name })),
  }
}

function toField(type, field) {
  if (field.map) throw new Error(`${type.fullName}.${field.name}: no map fields, see proto/`)
  const resolved = field.resolvedType
  const descriptor = {
    name: field.name,
    jsonName: protobuf.util.camelCase(field.name),
    number: field.id,
    label: field.repeated ? LABEL_REPEATED : LABEL_OPTIONAL,
    type:
      resolved === null
        ? SCALAR_TYPES[field.type]
        : resolved instanceof protobuf.Enum
          ? TYPE_ENUM
          : TYPE_MESSAGE,
  }
  if (resolved !== null) {
    descriptor.typeName = resolved.fullName
    if (samePackage(type) !== samePackage(resolved)) {
      throw new Error(`${type.fullName}.${field.name}: no messages of other packages, see proto/`)
    }
  }
  if (field.partOf !== null) {
    descriptor.oneofIndex = type.oneofsArray.indexOf(field.partOf)
    if (field.options?.proto3_optional) descriptor.proto3Optional = true
  }
  return descriptor
}

function samePackage(object) {
  let parent = object.parent
  while (parent instanceof protobuf.Type) parent = parent.parent
  return parent.fullName
}

function toEnum(object) {
  const value = Object.entries(object.values).map(([name, number]) => ({ name, number }))
  return { name: object.name, value }
}

function toService(service) {
  return {
    name: service.name,
    method: service.methodsArray.map((method) => ({
      name: method.name,
      inputType: method.resolvedRequestType.fullName,
      outputType: method.resolvedResponseType.fullName,
      clientStreaming: method.requestStream ?? false,
      serverStreaming: method.responseStream ?? false,
    })),
  }
}

function encodeDescriptor(descriptor) {
  const problem = FileDescriptorProto.verify(descriptor)
  if (problem !== null) throw new Error(`${descriptor.name}: ${problem}`)
  return FileDescriptorProto.encode(FileDescriptorProto.fromObject(descriptor)).finish()
}

// ---------------------------------------------------------------------------------------------------------------------- types

const TS_TYPES = {
  double: 'number',
  float: 'number',
  int64: 'number',
  uint64: 'number',
  int32: 'number',
  uint32: 'number',
  bool: 'boolean',
  string: 'string',
  bytes: 'Buffer',
}

function tsName(object) {
  return object.parent instanceof protobuf.Type
    ? `${tsName(object.parent)}${object.name}`
    : object.name
}

function collect(namespace, kind) {
  return namespace.nestedArray.flatMap((object) => [
    ...(object instanceof kind ? [object] : []),
    ...(object instanceof protobuf.Namespace ? collect(object, kind) : []),
  ])
}

function interfaceOf(type) {
  const lines = [`export interface ${tsName(type)} {`]
  for (const field of type.fieldsArray) {
    const resolved = field.resolvedType
    const base = resolved === null ? TS_TYPES[field.type] : tsName(resolved)
    if (base === undefined) throw new Error(`no TypeScript type for ${field.type}`)
    const value = field.repeated
      ? `${base}[]`
      : resolved instanceof protobuf.Type
        ? `${base} | null`
        : base
    lines.push(
      field.options?.proto3_optional ? `  ${field.name}?: ${value}` : `  ${field.name}: ${value}`,
    )
  }
  lines.push('}')
  return type.fieldsArray.length === 0
    ? `export type ${tsName(type)} = { [name: string]: never }`
    : lines.join('\n')
}

function enumOf(object) {
  const names = Object.keys(object.values).map((name) => `  | '${name}'`)
  return `export type ${tsName(object)} =\n${names.join('\n')}`
}

function enumNumbersOf(object) {
  const rows = Object.entries(object.values).map(([name, number]) => `  ${name}: ${number},`)
  const name = `${tsName(object)}_NUMBERS`.replaceAll(/([a-z])([A-Z])/g, '$1_$2').toUpperCase()
  // A mapped type, because a message of ours takes the name Record.
  const type = `{ readonly [name in ${tsName(object)}]: number }`
  return `export const ${name}: ${type} = {\n${rows.join('\n')}\n}`
}

function serviceOf(service) {
  const lines = [`export interface ${service.name}Methods {`]
  for (const method of service.methodsArray) {
    const request = tsName(method.resolvedRequestType)
    const response = tsName(method.resolvedResponseType)
    lines.push(`  ${method.name}: { request: ${request}; response: ${response} }`)
  }
  lines.push('}')
  return lines.join('\n')
}

// --------------------------------------------------------------------------------------------------------------------- output

const banner =
  '// Made from proto/ by scripts/gen.mjs. Not to be edited: change proto/ and run `npm run gen`.'
const camelRoot = loadRoot(false)
const plainRoot = loadRoot(true)
const quote = (text) => `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`

const descriptors = protoFiles.map((file) => {
  const bytes = encodeDescriptor(toFileDescriptor(plainRoot, file))
  return `  ${quote(Buffer.from(bytes).toString('base64'))},`
})
const outputs = {
  'descriptor.ts': `${banner}

/** All of proto/ as protobufjs writes it in JSON, camel-case fields: what proto-loader's fromJSON takes. */
export const SCHEMA_JSON: string =
  ${quote(JSON.stringify(camelRoot.toJSON()))}

/** Each file of proto/ as a FileDescriptorProto in base64, names as written: what server reflection answers. */
export const FILE_DESCRIPTORS: readonly string[] = [
${descriptors.join('\n')}
]
`,
  'types.ts': `${banner}
// What proto-loader hands out with longs as numbers, enums as names and defaults set: fields are there, but \`optional\` ones may be
// absent and messages may be null. An enum value that this version does not know arrives as its number, whatever the type says.

${[
  ...collect(camelRoot, protobuf.Enum).map(enumOf),
  ...collect(camelRoot, protobuf.Enum).map(enumNumbersOf),
  ...collect(camelRoot, protobuf.Type).map(interfaceOf),
  ...collect(camelRoot, protobuf.Service).map(serviceOf),
].join('\n\n')}
`,
}

let stale = false
mkdirSync(genPath, { recursive: true })
for (const [name, content] of Object.entries(outputs)) {
  const path = join(genPath, name)
  if (!process.argv.includes('--check')) {
    writeFileSync(path, content)
    continue
  }
  let present = ''
  try {
    present = readFileSync(path, 'utf8')
  } catch (error) {
    if (error.code !== 'ENOENT') throw error
  }
  if (present !== content) {
    stale = true
    console.error(`src/gen/${name} is stale: run npm run gen`)
  }
}
if (stale) process.exit(1)
