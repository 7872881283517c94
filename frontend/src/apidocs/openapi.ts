/** An OpenAPI document in the shape that the page shows. Pure. */

export interface Schema {
  $ref?: string;
  type?: string | string[];
  title?: string;
  description?: string;
  format?: string;
  enum?: unknown[];
  const?: unknown;
  default?: unknown;
  items?: Schema;
  properties?: Record<string, Schema>;
  additionalProperties?: boolean | Schema;
  required?: string[];
  anyOf?: Schema[];
  allOf?: Schema[];
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  ge?: number;
  le?: number;
  minLength?: number;
  maxLength?: number;
  minItems?: number;
  maxItems?: number;
}

interface Content {
  content?: Record<string, { schema?: Schema }>;
}

interface Parameter {
  in: string;
  name: string;
  required?: boolean;
  description?: string;
  schema?: Schema;
}

interface RawOperation {
  summary?: string;
  description?: string;
  tags?: string[];
  parameters?: Parameter[];
  requestBody?: Content;
  responses?: Record<string, Content & { description?: string }>;
  security?: Record<string, string[]>[];
}

export interface Document {
  info: { title: string; version: string };
  paths: Record<string, Record<string, RawOperation>>;
  components?: { schemas?: Record<string, Schema> };
}

/** A value that an operation takes or gives. */
export interface Field {
  name: string;
  type: string;
  required: boolean;
  description: string;
  /** Of an object or a list of objects. */
  fields: Field[];
}

export interface Operation {
  /** Its place on the page. */
  id: string;
  method: string;
  path: string;
  summary: string;
  description: string;
  /** Who may call it, as the document names it: Key, Member, Staff, Administrator or Anyone. */
  access: string;
  parameters: (Field & { where: string })[];
  body: Field[];
  example: unknown;
  answers: { status: string; description: string; fields: Field[] }[];
  errors: string[];
}

export interface Group {
  name: string;
  operations: Operation[];
}

const METHODS = ["get", "post", "put", "patch", "delete"];
/** How deep objects inside objects are described. */
const DEEPEST = 3;

/** The operations of a document by their tags, in its order. */
export function groups(document: Document): Group[] {
  const reader = new Reader(document);
  const byTag = new Map<string, Operation[]>();
  for (const [path, methods] of Object.entries(document.paths)) {
    for (const method of METHODS) {
      const raw = methods[method];
      if (!raw) continue;
      const tag = raw.tags?.[0] ?? "";
      byTag.set(tag, [...(byTag.get(tag) ?? []), reader.operation(method, path, raw)]);
    }
  }
  return [...byTag].map(([name, operations]) => ({ name, operations }));
}

/** Those groups and operations in which all of the words occur. */
export function matching(all: Group[], words: string): Group[] {
  const terms = words.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = (group: Group, { method, path, summary, description }: Operation): boolean => {
    const text = [group.name, method, path, summary, description].join(" ").toLowerCase();
    return terms.every((word) => text.includes(word));
  };
  return all
    .map((group) => ({ ...group, operations: group.operations.filter((operation) => matches(group, operation)) }))
    .filter((group) => group.operations.length > 0);
}

/** The operation as a command line. */
export function curl(operation: Operation, origin: string): string {
  const lines = [`curl ${operation.method === "GET" ? "" : `-X ${operation.method} `}${origin}${operation.path}`];
  lines.push(`-H "Authorization: Bearer $KEY"`);
  if (operation.body.length > 0) {
    lines.push(`-H "Content-Type: application/json"`, `-d '${JSON.stringify(operation.example)}'`);
  }
  return lines.join(" \\\n  ");
}

class Reader {
  readonly #schemas: Record<string, Schema>;

  constructor(document: Document) {
    this.#schemas = document.components?.schemas ?? {};
  }

  operation(method: string, path: string, raw: RawOperation): Operation {
    const body = schemaOf(raw.requestBody);
    const responses = Object.entries(raw.responses ?? {});
    const answers = responses.filter(([status]) => status < "400");
    return {
      id: `${method}${path.replace(/\W+/g, "-")}`,
      method: method.toUpperCase(),
      path,
      summary: raw.summary ?? path,
      description: raw.description ?? "",
      access: Object.keys(raw.security?.[0] ?? {})[0] ?? "Anyone",
      parameters: (raw.parameters ?? []).map((parameter) => this.#parameter(parameter)),
      body: this.#fields(body, DEEPEST),
      example: this.#example(body, DEEPEST),
      answers: answers.map(([status, answer]) => ({
        status,
        description: answer.description ?? "",
        fields: this.#fields(schemaOf(answer), DEEPEST),
      })),
      errors: responses.map(([status]) => status).filter((status) => status >= "400"),
    };
  }

  #parameter(parameter: Parameter): Field & { where: string } {
    const schema = parameter.schema ?? {};
    const required = parameter.required ?? false;
    return { ...this.#field(parameter.name, schema, required, 0), where: parameter.in };
  }

  #resolve(schema: Schema | undefined): Schema {
    if (!schema) return {};
    if (schema.$ref) return this.#schemas[schema.$ref.split("/").at(-1) ?? ""] ?? {};
    const [first] = schema.allOf ?? [];
    return first ? this.#resolve(first) : schema;
  }

  #field(name: string, schema: Schema, required: boolean, depth: number): Field {
    return {
      name,
      type: this.#type(schema),
      required,
      description: schema.description ?? "",
      fields: depth > 0 ? this.#fields(schema, depth - 1) : [],
    };
  }

  /** The fields of an object, of the objects in a list, or of the one alternative that is such. */
  #fields(schema: Schema | undefined, depth: number): Field[] {
    const resolved = this.#resolve(schema);
    if (resolved.items) return this.#fields(resolved.items, depth);
    const alternatives = (resolved.anyOf ?? []).map((each) => this.#fields(each, depth));
    const inside = alternatives.find((fields) => fields.length > 0);
    if (inside) return inside;
    const required = new Set(resolved.required ?? []);
    return Object.entries(resolved.properties ?? {}).map(([name, each]) => this.#field(name, each, required.has(name), depth));
  }

  #type(schema: Schema): string {
    const resolved = this.#resolve(schema);
    if (resolved.anyOf) return resolved.anyOf.map((each) => this.#type(each)).join(" or ");
    if (resolved.enum) return resolved.enum.map((value) => JSON.stringify(value)).join(", ");
    if (resolved.const !== undefined) return JSON.stringify(resolved.const);
    if (resolved.type === "array") return `list of ${this.#type(resolved.items ?? {})}${countLimits(resolved)}`;
    const name = Array.isArray(resolved.type) ? resolved.type.join(" or ") : (resolved.type ?? "anything");
    return `${resolved.format ?? name}${valueLimits(resolved)}`;
  }

  #example(schema: Schema | undefined, depth: number): unknown {
    const resolved = this.#resolve(schema);
    if (resolved.anyOf?.[0]) return this.#example(resolved.anyOf[0], depth);
    if (resolved.enum) return resolved.enum[0];
    if (resolved.type === "array") return depth > 0 ? [this.#example(resolved.items, depth - 1)] : [];
    if (resolved.properties) {
      const names = resolved.required ?? [];
      return Object.fromEntries(names.map((name) => [name, this.#example(resolved.properties?.[name], depth - 1)]));
    }
    return { integer: 1, number: 1, boolean: true, object: {} }[String(resolved.type)] ?? "…";
  }
}

function schemaOf(content: Content | undefined): Schema | undefined {
  return Object.values(content?.content ?? {})[0]?.schema;
}

function range(least: number | undefined, most: number | undefined): string {
  if (least !== undefined && most !== undefined) return `${least} to ${most}`;
  if (least !== undefined) return `at least ${least}`;
  return most === undefined ? "" : `at most ${most}`;
}

function valueLimits(schema: Schema): string {
  const above = schema.exclusiveMinimum;
  const least = schema.minimum ?? schema.ge;
  const most = schema.maximum ?? schema.exclusiveMaximum ?? schema.le;
  const values = above === undefined ? range(least, most) : [`above ${above}`, range(undefined, most)].filter(Boolean).join(", ");
  const limits = [values, lengthLimits(schema)].filter(Boolean).join(", ");
  return limits ? ` (${limits})` : "";
}

function lengthLimits({ minLength, maxLength }: Schema): string {
  if (minLength === 1 && maxLength === undefined) return "not empty";
  const length = range(minLength, maxLength);
  return length && `${length} characters`;
}

function countLimits(schema: Schema): string {
  const count = range(schema.minItems, schema.maxItems);
  return count ? ` (${count})` : "";
}
