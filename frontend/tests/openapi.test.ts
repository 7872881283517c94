import { describe, expect, it } from "vitest";
import { curl, type Document, groups, matching } from "../src/apidocs/openapi";

const document: Document = {
  info: { title: "Canopy", version: "1" },
  paths: {
    "/things/{id}": {
      post: {
        tags: ["things"],
        summary: "Change",
        parameters: [{ in: "path", name: "id", required: true, schema: { type: "integer" } }],
        requestBody: { content: { "application/json": { schema: { $ref: "#/components/schemas/Thing" } } } },
        responses: { "200": { description: "OK" }, "404": {}, "400": {} },
        security: [{ Key: [] }],
      },
      get: { tags: ["things"], responses: { "200": {} } },
    },
    "/me": { get: { tags: ["people"], description: "Who asks.", responses: {} } },
  },
  components: {
    schemas: {
      Thing: {
        type: "object",
        required: ["name"],
        properties: {
          name: { type: "string", minLength: 1 },
          size: { anyOf: [{ type: "number", exclusiveMinimum: 0, maximum: 2 }, { type: "null" }], description: "In metres." },
          kind: { enum: ["a", "b"] },
          parts: { type: "array", maxItems: 3, items: { $ref: "#/components/schemas/Thing" } },
        },
      },
    },
  },
};

describe("the document of the API", () => {
  const all = groups(document);
  const change = all[0]?.operations[1];

  it("is read by tags", () => {
    expect(all.map((group) => [group.name, group.operations.map((each) => `${each.method} ${each.path}`)])).toEqual([
      ["things", ["GET /things/{id}", "POST /things/{id}"]],
      ["people", ["GET /me"]],
    ]);
    expect([change?.access, change?.errors]).toEqual(["Key", ["400", "404"]]);
  });

  it("says what a field may be", () => {
    expect(change?.body.map(({ name, type, required }) => [name, type, required])).toEqual([
      ["name", "string (not empty)", true],
      ["size", "number (above 0, at most 2) or null", false],
      ["kind", '"a", "b"', false],
      ["parts", "list of object (at most 3)", false],
    ]);
  });

  it("describes objects in objects, but not for ever", () => {
    const depth = (fields: { fields: never[] | unknown[] }[]): number =>
      fields.length === 0 ? 0 : 1 + Math.max(...fields.map((field) => depth(field.fields as { fields: unknown[] }[])));
    expect(depth(change?.body ?? [])).toBe(4);
  });

  it("gives a command to try", () => {
    expect(change && curl(change, "http://here")).toBe(
      'curl -X POST http://here/things/{id} \\\n  -H "Authorization: Bearer $KEY" \\\n' +
        '  -H "Content-Type: application/json" \\\n  -d \'{"name":"…"}\'',
    );
  });

  it("can be filtered", () => {
    expect(matching(all, "WHO asks").map((group) => group.name)).toEqual(["people"]);
    expect(matching(all, "post things")[0]?.operations).toHaveLength(1);
    expect(matching(all, "nothing")).toEqual([]);
  });
});
