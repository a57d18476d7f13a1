"""The part of GitHub's GraphQL schema that the hub has."""

from graphql import build_schema

SCHEMA = build_schema("""
interface Node { id: ID! }
interface Actor { login: String! }
enum ReactionContent { THUMBS_UP THUMBS_DOWN LAUGH HOORAY CONFUSED HEART ROCKET EYES }
enum DiffSide { LEFT RIGHT }
enum PullRequestReviewThreadSubjectType { LINE FILE }
type User implements Node & Actor { id: ID! login: String! databaseId: Int }
type Bot implements Node & Actor { id: ID! login: String! databaseId: Int }
type Organization implements Node & Actor { id: ID! login: String! databaseId: Int }
type PageInfo { hasNextPage: Boolean! endCursor: String }
type Repository implements Node {
  id: ID! databaseId: Int name: String! nameWithOwner: String!
  issue(number: Int!): Issue
  pullRequest(number: Int!): PullRequest
}
type Issue implements Node {
  id: ID! databaseId: Int number: Int! title: String! body: String! state: String! author: Actor
}
type PullRequest implements Node {
  id: ID! databaseId: Int number: Int! title: String! body: String! state: String! author: Actor
  isDraft: Boolean! merged: Boolean! mergeable: String!
  headRefName: String! baseRefName: String! headRefOid: String!
  reviewThreads(first: Int, last: Int, after: String): ThreadConnection!
}
type ThreadConnection { totalCount: Int! nodes: [PullRequestReviewThread]! pageInfo: PageInfo! }
type PullRequestReviewThread implements Node {
  id: ID! isResolved: Boolean! isOutdated: Boolean! path: String!
  line: Int originalLine: Int resolvedBy: Actor
  comments(first: Int, last: Int, after: String): CommentConnection!
}
type CommentConnection { totalCount: Int! nodes: [PullRequestReviewComment]! pageInfo: PageInfo! }
type PullRequestReviewComment implements Node {
  id: ID! databaseId: Int body: String! path: String! line: Int createdAt: String! author: Actor
}
type PullRequestReview implements Node {
  id: ID! databaseId: Int body: String! state: String! submittedAt: String author: Actor
}
type IssueComment implements Node {
  id: ID! databaseId: Int body: String! createdAt: String! author: Actor
}
type Reaction { id: ID! databaseId: Int content: ReactionContent! user: Actor }
input AddReactionInput { subjectId: ID! content: ReactionContent! clientMutationId: String }
input AddPullRequestReviewThreadInput {
  pullRequestReviewId: ID! path: String! body: String! line: Int side: DiffSide
  startLine: Int startSide: DiffSide subjectType: PullRequestReviewThreadSubjectType
  clientMutationId: String
}
input DeleteIssueInput { issueId: ID! clientMutationId: String }
input TransferIssueInput {
  issueId: ID! repositoryId: ID! createLabelsIfMissing: Boolean clientMutationId: String
}
input PullInput { pullRequestId: ID! clientMutationId: String }
input ThreadInput { threadId: ID! clientMutationId: String }
type AddReactionPayload { clientMutationId: String reaction: Reaction subject: Node }
type AddPullRequestReviewThreadPayload {
  clientMutationId: String thread: PullRequestReviewThread
}
type DeleteIssuePayload { clientMutationId: String repository: Repository }
type TransferIssuePayload { clientMutationId: String issue: Issue }
type PullPayload { clientMutationId: String pullRequest: PullRequest }
type ThreadPayload { clientMutationId: String thread: PullRequestReviewThread }
type Query {
  viewer: Actor!
  repository(owner: String!, name: String!): Repository
  node(id: ID!): Node
}
type Mutation {
  addReaction(input: AddReactionInput!): AddReactionPayload
  addPullRequestReviewThread(
    input: AddPullRequestReviewThreadInput!
  ): AddPullRequestReviewThreadPayload
  deleteIssue(input: DeleteIssueInput!): DeleteIssuePayload
  transferIssue(input: TransferIssueInput!): TransferIssuePayload
  markPullRequestReadyForReview(input: PullInput!): PullPayload
  convertPullRequestToDraft(input: PullInput!): PullPayload
  resolveReviewThread(input: ThreadInput!): ThreadPayload
  unresolveReviewThread(input: ThreadInput!): ThreadPayload
}
""")
