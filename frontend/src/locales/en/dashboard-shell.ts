export const shell = {
  "shell.title": "Dashboard",
  "shell.sections": "Sections of the dashboard",
  "shell.tree": "Tree",
  "shell.unknown": "Nothing is at this address",
  "shell.unknownText": "The dashboard has no such section.",
  "shell.toTree": "To the tree",
  "shell.admin": "Django's admin",
  "shell.apiDocs": "API documents",
  "shell.elsewhere": "Elsewhere",
};
